"""What examples have in common: found, packed and counted. Numbers are held against the reference in another file."""

import random
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.engine.examples import Example, load_examples, random_examples, spec, write_examples
from tests.engine.sharers import FIRST, NESTED, SECOND, load_sharers
from worker.contract.spec import Execution, LoraSettings
from worker.data.token_file import TokenFile
from worker.engine import batches, methods
from worker.engine.packing import first_fit_decreasing, pack
from worker.engine.prefixes import MIN_SHARED_TOKENS, Sharing, sharings


def shared(path: Path, examples: list[Example]) -> TokenFile:
    return replace(load_examples(path, examples), shares_prefixes=True)


def behind(common: int, own: int, *, trained_from: int | None = None, mark: int = 0) -> Example:
    """`common` tokens that all have, then `own` that depend on `mark`; trained to the end."""
    tokens = [*range(common), *(100 + mark + 7 * place for place in range(own))]
    trained = common + 1 if trained_from is None else trained_from
    return tokens, [0.0] * trained + [1.0] * (len(tokens) - trained)


def test_rows_are_grouped_by_what_they_begin_with(tmp_path: Path) -> None:
    data = replace(load_sharers(tmp_path / "data"), shares_prefixes=True)
    assert sharings(data, range(12)) == [
        Sharing((0, 5, 10), FIRST),
        Sharing((1,), 0),
        Sharing((2, 3, 7, 8), SECOND),
        Sharing((4, 9), FIRST + NESTED),
        Sharing((6,), 0),
        Sharing((11,), 0),
    ]


def test_nothing_is_shared_unless_that_is_asked_for(tmp_path: Path) -> None:
    data = load_examples(tmp_path / "data", [behind(40, 5), behind(40, 5)])
    assert sharings(data, [1, 0]) == [Sharing((1,), 0), Sharing((0,), 0)]


def test_a_prefix_ends_before_the_token_that_predicts_a_trained_one(tmp_path: Path) -> None:
    data = shared(tmp_path / "data", [behind(40, 5), behind(40, 5), behind(40, 5, trained_from=30)])
    assert sharings(data, [0, 1]) == [Sharing((0, 1), 40)]
    assert sharings(data, [0, 2]) == [Sharing((0, 2), 29)]
    untrained = ([*range(30)], [0.0] * 30)
    equal = shared(tmp_path / "equal", [untrained, untrained])
    assert sharings(equal, [0, 1]) == [Sharing((0, 1), 29)]  # each row keeps a token of its own


@pytest.mark.parametrize(("common", "expected"), [(MIN_SHARED_TOKENS - 1, 0), (MIN_SHARED_TOKENS, MIN_SHARED_TOKENS)])
def test_a_short_prefix_is_left_alone(tmp_path: Path, common: int, expected: int) -> None:
    data = shared(tmp_path / "data", [behind(common, 5), behind(common, 6, mark=1)])
    assert max(sharing.shared for sharing in sharings(data, [0, 1])) == expected


def test_a_row_of_documents_has_each_prefix_once(tmp_path: Path) -> None:
    one, other = behind(16, 3), behind(16, 2, mark=1)
    alone: Example = ([400, 401], [0.0, 0.5])
    data = shared(tmp_path / "data", [one, alone, other])
    batch = pack(data, [0, 1, 2])
    assert batch.tokens_T.tolist() == [*range(16), 100, 107, 114, 101, 108, 400, 401]
    assert batch.positions_T.tolist() == [*range(16), 16, 17, 18, 16, 17, 0, 1]
    assert batch.bounds == (0, 16, 19, 21, 23)
    assert batch.prefixes == (None, 0, 0, None)
    assert batch.sources_N.tolist() == [16, 17, 19, 21]
    assert batch.targets_N.tolist() == [107, 114, 108, 401]
    assert batch.weights_N.tolist() == [1, 1, 1, 0.5]
    assert batch.num_tokens == 19 + 2 + 18


def random_tree(source: random.Random) -> list[Example]:
    """Rows that begin alike in many ways: each continues some part of another."""
    rows = [[source.randrange(500) for _ in range(60)]]
    while len(rows) < 12:
        begun = source.choice(rows)[: source.randrange(60)]
        rows.append(begun + [source.randrange(500) for _ in range(source.randint(2, 40))])
    return [(tokens, [0.0] * (len(tokens) - 1) + [1.0]) for tokens in rows]


@pytest.mark.parametrize("seed", range(30))
def test_as_much_is_saved_as_neighbours_can_save_and_never_more_than_the_budget_computed(
    tmp_path: Path, seed: int
) -> None:
    source = random.Random(seed)
    data = shared(tmp_path / "data", random_tree(source))
    rows = source.sample(range(12), 12)

    def saved(found: list[Sharing]) -> int:
        return sum(sharing.shared * (len(sharing.rows) - 1) for sharing in found)

    found = sharings(data, rows)
    assert sorted(row for sharing in found for row in sharing.rows) == sorted(rows)
    for sharing in found:
        begun = {tuple(data.example(row)[0][: sharing.shared]) for row in sharing.rows}
        assert len(begun) == 1
    assert saved(found) == most_saved(data)
    subset = source.sample(rows, 6)
    restricted = [Sharing(tuple(set(s.rows) & set(subset)), s.shared) for s in found if set(s.rows) & set(subset)]
    assert saved(sharings(data, subset)) >= saved(restricted)
    for budget in (40, 90, 150, 1000):
        groups = batches.micro_batches(data, rows, budget)
        assert sorted(row for group in groups for row in group) == sorted(rows)
        for group in groups:
            assert len(pack(data, group).tokens_T) <= budget or len(group) == 1


def most_saved(data: TokenFile) -> int:
    """Every way to cut the sorted heads into segments, tried."""
    heads = sorted([*data.example(row)[0][:-2]] for row in range(len(data)))

    def common(segment: list[list[int]]) -> int:
        equal = 0
        for tokens in zip(*segment, strict=False):
            if len(set(tokens)) > 1:
                break
            equal += 1
        return equal if equal >= MIN_SHARED_TOKENS else 0

    values = {
        (first, end): common(heads[first:end]) * (end - first - 1)
        for first, end in combinations(range(len(heads) + 1), 2)
    }
    cuts = [c for size in range(len(heads)) for c in combinations(range(1, len(heads)), size)]
    return max(sum(values[segment] for segment in pairwise((0, *cut, len(heads)))) for cut in cuts)


@pytest.mark.parametrize("budget", [1, 40, 128, 1000])
def test_where_nothing_is_shared_micro_batches_are_as_without(tmp_path: Path, budget: int) -> None:
    data = load_examples(tmp_path / "data", random_examples(40, shortest=20, longest=40))
    lengths = [data.length(row) for row in range(40)]
    expected = first_fit_decreasing(lengths, budget)
    for given in (data, replace(data, shares_prefixes=True)):
        assert batches.micro_batches(given, list(range(40)), budget) == expected
        assert [pack(given, group).bounds for group in expected] == [pack(data, group).bounds for group in expected]


def test_sharers_are_kept_together_and_a_shared_prefix_counts_once(tmp_path: Path) -> None:
    """6 rows of 30 tokens, 20 of them in common, and a budget of 60: four together, then the other two."""
    examples = [behind(20, 10, mark=mark) for mark in range(6)]
    data = shared(tmp_path / "data", examples)
    assert batches.micro_batches(data, list(range(6)), 60) == [[0, 1, 2, 3], [4, 5]]
    assert [len(pack(data, group).tokens_T) for group in ([0, 1, 2, 3], [4, 5])] == [60, 40]
    assert batches.micro_batches(data, list(range(6)), 20) == [[row] for row in range(6)]
    evaluated = list(batches.evaluation_batches(data, list(range(6)), 60))
    assert evaluated == [[0, 1, 2, 3], [4, 5]]


PLAIN = LoraSettings(rank=4, alpha=8)


def execution(shares: bool) -> Execution:
    return Execution(device="cpu", dtype="float32", token_budget=96, num_threads=1, share_prefixes=shares)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora": PLAIN, "execution": None}, True),
        ({"lora": PLAIN, "execution": execution(True)}, True),
        ({"lora": PLAIN, "execution": execution(False)}, False),
        ({"lora": PLAIN, "execution": execution(True), "neftune_noise_alpha": 5.0}, False),
        ({"lora": LoraSettings(rank=4, alpha=8, dropout=0.1), "execution": execution(True)}, False),
    ],
)
def test_a_run_shares_where_its_execution_says_so_and_nothing_is_drawn(
    base: PreTrainedModel, tmp_path: Path, changes: dict[str, object], expected: bool
) -> None:
    path = write_examples(tmp_path / "data", random_examples(3))
    data = methods.load(str(path), base, spec(**changes))
    assert isinstance(data, TokenFile)
    assert data.shares_prefixes is expected
