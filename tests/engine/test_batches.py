from pathlib import Path

import numpy as np
import pytest

from tests.engine.examples import load_examples, random_examples
from worker.contract.errors import TrainError
from worker.engine import batches
from worker.engine.packing import first_fit_decreasing, pack
from worker.engine.seeds import shuffled


def test_each_epoch_takes_every_example_once_in_another_order() -> None:
    plan = batches.Plan(num_examples=21, n_epochs=3, batch_size=4, seed=5)
    assert (plan.steps_per_epoch, plan.total_steps) == (6, 18)
    epochs = [[row for step in range(6 * e + 1, 6 * e + 7) for row in plan.rows(step)] for e in range(3)]
    assert all(sorted(rows) == list(range(21)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3
    assert [len(plan.rows(step)) for step in range(1, 7)] == [4, 4, 4, 4, 4, 1]
    assert [plan.epoch(step) for step in (1, 6, 7, 18)] == [1, 1, 2, 3]
    assert [step for step in range(1, 19) if plan.is_epoch_end(step)] == [6, 12, 18]


def test_a_step_depends_on_nothing_but_seed_and_number() -> None:
    plan = batches.Plan(num_examples=100, n_epochs=2, batch_size=8, seed=5)
    late = plan.rows(20)
    plan.rows(1)
    assert batches.Plan(num_examples=100, n_epochs=2, batch_size=8, seed=5).rows(20) == late
    assert batches.Plan(num_examples=100, n_epochs=2, batch_size=8, seed=6).rows(20) != late


def test_the_order_of_a_seed_never_changes() -> None:
    assert shuffled(10, 3, "epoch", 1).tolist() == [0, 8, 1, 4, 3, 7, 2, 6, 5, 9]


def test_shuffled_positions_are_uniform() -> None:
    first = np.bincount([shuffled(8, seed, "epoch", 1)[0] for seed in range(4000)], minlength=8)
    assert abs(first - 500).max() < 100


@pytest.mark.parametrize("budget", [1, 7, 16, 1000])
def test_packs_keep_the_budget_and_every_example(budget: int) -> None:
    lengths = [5, 3, 16, 9, 1, 7, 7, 2]
    bins = first_fit_decreasing(lengths, budget)
    assert sorted(index for group in bins for index in group) == list(range(len(lengths)))
    for group in bins:
        assert sum(lengths[index] for index in group) <= budget or len(group) == 1


def test_first_fit_decreasing() -> None:
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]


def test_a_packed_row_has_bounds_positions_and_targets_of_its_documents(tmp_path: Path) -> None:
    data = load_examples(
        tmp_path / "data", [([10, 11, 12], [0.0, 0.0, 1.0]), ([20, 21], [0.0, 0.5]), ([30, 31], [0.0, 0.0])]
    )
    batch = pack(data, [1, 0, 2])
    assert batch.tokens_T.tolist() == [20, 21, 10, 11, 12, 30, 31]
    assert batch.positions_T.tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert batch.bounds == (0, 2, 5, 7)
    assert batch.sources_N.tolist() == [0, 3]
    assert batch.targets_N.tolist() == [21, 12]
    assert batch.weights_N.tolist() == [0.5, 1.0]


def test_the_validation_sample_is_fixed_and_in_order() -> None:
    sample = batches.evaluation_sample(100, 8, seed=1)
    assert sample == sorted(set(sample)) == batches.evaluation_sample(100, 8, seed=1)
    assert sample != batches.evaluation_sample(100, 8, seed=2)
    assert batches.evaluation_sample(5, 8, seed=1) == [0, 1, 2, 3, 4]


def test_evaluation_covers_every_row(tmp_path: Path) -> None:
    data = load_examples(tmp_path / "data", random_examples(600))
    groups = list(batches.evaluation_batches(data, list(range(600)), token_budget=128))
    assert sorted(row for group in groups for row in group) == list(range(600))


@pytest.mark.parametrize(
    ("vocab_size", "limit", "words"),
    [(512, 4, "has 5 tokens"), (30, 64, "outside of the model's vocabulary")],
)
def test_data_that_the_model_cannot_take_is_refused(tmp_path: Path, vocab_size: int, limit: int, words: str) -> None:
    data = load_examples(tmp_path / "data", [([1, 2, 3, 4, 30], [0.0] * 4 + [1.0])])
    with pytest.raises(TrainError, match=words):
        batches.check_data(data, vocab_size=vocab_size, max_sequence_tokens=limit, param="training_file")


def test_the_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    one = load_examples(tmp_path / "one", [([1, 2], [0.0, 1.0])])
    other = load_examples(tmp_path / "other", [([1, 2], [0.0, 0.5])])
    assert batches.fingerprint(one) != batches.fingerprint(other)
