from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from worker.data import pair_file, token_file
from worker.data.pair_file import PairFile
from worker.data.token_file import TokenFile, TokenFileError

PAIRS = [
    ([1, 2], ([3, 4], [1.0, 0.5]), ([5], [1.0])),
    ([6], ([7], [1.0]), ([8, 9, 10], [0.0, 1.0, 0.0])),
]


def arrays(**changed: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "tokens": np.array([1, 2, 3, 4], np.int32),
        "weights": np.array([0, 0, 1, 1], np.float32),
        "offsets": np.array([0, 4], np.int64),
        "answers": np.array([[2, 3]], np.int64),
    } | changed


def test_what_was_written_is_read(tmp_path: Path) -> None:
    pair_file.write(tmp_path / "a", iter(PAIRS))
    loaded = PairFile.load(tmp_path / "a")
    assert len(loaded) == 2
    for index, (prompt, *answers) in enumerate(PAIRS):
        pair = loaded.pair(index)
        assert pair.prompt.tolist() == prompt
        found = [(tokens.tolist(), weights.tolist()) for tokens, weights in (pair.chosen, pair.rejected)]
        assert found == [(list(tokens), list(weights)) for tokens, weights in answers]
    assert [loaded.num_tokens(index) for index in (0, 1)] == [5, 5]
    assert loaded.longest_sequence() == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(IndexError):
        loaded.pair(-1)


def test_a_file_without_pairs_is_a_file(tmp_path: Path) -> None:
    pair_file.write(tmp_path / "a", [])
    assert len(PairFile.load(tmp_path / "a")) == 0


@pytest.mark.parametrize(
    "pair",
    [
        ([], ([1], [1.0]), ([2], [1.0])),
        ([1], ([], []), ([2], [1.0])),
        ([1], ([2], [1.0]), ([], [])),
        ([1], ([2], [0.0]), ([3], [1.0])),
        ([1], ([2], [1.0]), ([3], [0.0])),
        ([1], ([2], [1.0, 1.0]), ([3], [])),
        ([1], ([2], [1.0]), ([-3], [1.0])),
    ],
)
def test_bad_pairs_are_not_written(
    tmp_path: Path, pair: tuple[list[int], tuple[list[int], list[float]], tuple[list[int], list[float]]]
) -> None:
    with pytest.raises(ValueError):
        pair_file.write(tmp_path / "a", [PAIRS[0], pair])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answers": np.array([[2, 3]], np.int32)}, "answers is int32"),
        ({"answers": np.array([2, 3], np.int64)}, "answers is int64"),
        ({"answers": np.array([[2, 2]], np.int64)}, "lacks its prompt or an answer"),
        ({"answers": np.array([[0, 3]], np.int64)}, "lacks its prompt or an answer"),
        ({"answers": np.array([[2, 4]], np.int64)}, "lacks its prompt or an answer"),
        ({"answers": np.array([[2, 9]], np.int64)}, "lacks its prompt or an answer"),
        ({"weights": np.array([0, 1, 1, 1], np.float32)}, "a prompt has a weight"),
        ({"weights": np.array([0, 0, 0, 1], np.float32)}, "no trained token"),
        ({"weights": np.array([0, 0, 1, 0], np.float32)}, "no trained token"),
        ({"tokens": np.array([1, -2, 3, 4], np.int32)}, "token id is negative"),
    ],
)
def test_inconsistent_files_are_refused(tmp_path: Path, changed: dict[str, np.ndarray], said: str) -> None:
    save_file(arrays(**changed), tmp_path / "a")
    with pytest.raises(TokenFileError, match=said):
        PairFile.load(tmp_path / "a")


def test_the_two_kinds_of_files_are_told_apart(tmp_path: Path) -> None:
    pair_file.write(tmp_path / "pairs", PAIRS)
    token_file.write(tmp_path / "tokens", [([1, 2], [0.0, 1.0])])
    with pytest.raises(TokenFileError, match="holds"):
        TokenFile.load(tmp_path / "pairs")
    with pytest.raises(TokenFileError, match="holds"):
        PairFile.load(tmp_path / "tokens")
