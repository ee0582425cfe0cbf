from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from worker.data import token_file
from worker.data.token_file import TokenFile, TokenFileError

EXAMPLES = [([1, 2, 3], [0.0, 1.0, 0.5]), ([4], [0.0]), ([5, 6], [0.0, 1.0])]


def arrays(**changed: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "tokens": np.array([1, 2, 3], np.int32),
        "weights": np.array([0, 1, 0], np.float32),
        "offsets": np.array([0, 2, 3], np.int64),
    } | changed


def test_what_was_written_is_read(tmp_path: Path) -> None:
    token_file.write(tmp_path / "a", iter(EXAMPLES))
    loaded = TokenFile.load(tmp_path / "a")
    assert len(loaded) == 3
    assert [(t.tolist(), w.tolist()) for t, w in (loaded.example(i) for i in range(3))] == EXAMPLES
    assert (loaded.tokens.dtype, loaded.weights.dtype, loaded.offsets.dtype) == (np.int32, np.float32, np.int64)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_without_examples_is_a_file(tmp_path: Path) -> None:
    token_file.write(tmp_path / "a", [])
    assert len(TokenFile.load(tmp_path / "a")) == 0


def test_examples_outside_the_file_do_not_wrap_around(tmp_path: Path) -> None:
    token_file.write(tmp_path / "a", EXAMPLES)
    with pytest.raises(IndexError):
        TokenFile.load(tmp_path / "a").example(-1)


@pytest.mark.parametrize(
    "example", [([], []), ([1, 2], [0.0]), ([1], [1.0]), ([-1], [0.0]), ([1, 2], [0.0, float("nan")])]
)
def test_bad_examples_are_not_written(tmp_path: Path, example: tuple[list[int], list[float]]) -> None:
    with pytest.raises(ValueError):
        token_file.write(tmp_path / "a", [EXAMPLES[0], example])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_file_before(tmp_path: Path) -> None:
    token_file.write(tmp_path / "a", EXAMPLES)
    with pytest.raises(ValueError):
        token_file.write(tmp_path / "a", [([1], [1.0])])
    assert len(TokenFile.load(tmp_path / "a")) == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokens": np.array([1, 2, 3], np.int64)}, "tokens is int64"),
        ({"weights": np.array([0, 1], np.float32)}, "3 tokens but 2 weights"),
        ({"offsets": np.array([0, 2], np.int64)}, "do not span"),
        ({"offsets": np.array([1, 3], np.int64)}, "do not span"),
        ({"offsets": np.array([], np.int64)}, "do not span"),
        ({"offsets": np.array([0, 3, 2, 3], np.int64)}, "offsets fall"),
        ({"weights": np.array([0, -1, 0], np.float32)}, "negative or not finite"),
        ({"weights": np.array([1, 0, 0], np.float32)}, "first token"),
        ({"tokens": np.array([1, -2, 3], np.int32)}, "token id is negative"),
        ({"more": np.array([1], np.int32)}, "holds"),
    ],
)
def test_inconsistent_files_are_refused(tmp_path: Path, changed: dict[str, np.ndarray], said: str) -> None:
    save_file(arrays(**changed), tmp_path / "a")
    with pytest.raises(TokenFileError, match=said):
        TokenFile.load(tmp_path / "a")


def test_truncated_and_missing_files_are_refused(tmp_path: Path) -> None:
    token_file.write(tmp_path / "a", EXAMPLES)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    for name in ("a", "missing"):
        with pytest.raises(TokenFileError):
            TokenFile.load(tmp_path / name)
