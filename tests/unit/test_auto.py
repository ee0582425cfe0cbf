import pytest
from pydantic import ValidationError

from worker.contract.spec import BaseModelRef
from worker.data.auto import DatasetCounts, Requested, base_learning_rate, build_spec, resolve

B = 1_000_000_000


def counts(num_examples: int, trained: int = 100) -> DatasetCounts:
    return DatasetCounts(
        num_examples=num_examples,
        num_tokens=3 * num_examples * trained,
        num_trained_tokens=num_examples * trained,
        max_example_tokens=5 * trained,
    )


# The published table: what "auto" means for files of these sizes on an 8B model.
TABLE = [
    # examples, trained tokens an example -> epochs, batch, steps, warmup, evaluation, checkpoint
    (10, 50, 10, 1, 100, 5, 10, 10),
    (50, 50, 6, 3, 102, 5, 17, 11),
    (99, 50, 4, 3, 132, 6, 18, 14),
    (100, 50, 3, 3, 102, 5, 18, 11),
    (500, 100, 3, 6, 252, 12, 13, 26),
    (1_000, 2, 3, 30, 102, 5, 6, 11),
    (1_000, 200, 3, 3, 1_002, 50, 51, 101),
    (2_000, 130, 3, 4, 1_500, 75, 75, 150),
    (10_000, 200, 3, 20, 1_500, 75, 75, 150),
    (25_000, 200, 2, 50, 1_000, 50, 50, 100),
    (50_000, 100, 1, 64, 782, 39, 40, 79),
    (1_000_000, 100, 1, 64, 15_625, 100, 782, 250),
]


@pytest.mark.parametrize("row", TABLE)
def test_the_published_table(row: tuple[int, ...]) -> None:
    examples, trained, *expected = row
    got = resolve(Requested(), counts(examples, trained), num_parameters=8 * B)
    assert [
        got.n_epochs,
        got.batch_size,
        got.total_steps,
        got.warmup_steps,
        got.eval_interval_steps,
        got.checkpoint_interval_steps,
    ] == expected
    assert got.learning_rate_multiplier == 1.0


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [
        (1_000_000, 1e-2),
        (4_000_000, 6.1e-3),
        (135_000_000, 1.26e-3),
        (B // 2, 7.0e-4),
        (8 * B, 2e-4),
        (70 * B, 7.5e-5),
        (700 * B, 5e-5),
    ],
)
def test_smaller_models_learn_at_higher_rates(parameters: int, rate: float) -> None:
    assert base_learning_rate(parameters) == pytest.approx(rate, rel=0.01)


def test_what_was_requested_is_what_runs() -> None:
    requested = Requested(n_epochs=7, batch_size=32, learning_rate_multiplier=2)
    got = resolve(requested, counts(20), num_parameters=8 * B)
    assert (got.n_epochs, got.batch_size, got.learning_rate_multiplier) == (7, 32, 2.0)
    assert got.learning_rate == pytest.approx(4e-4)
    assert got.total_steps == 7


@pytest.mark.parametrize("examples", [1, 2, 9, 10, 77, 101, 333, 5_000, 123_456])
@pytest.mark.parametrize("trained", [1, 10, 5_000])
def test_every_file_gets_a_possible_run(examples: int, trained: int) -> None:
    for requested in (Requested(), Requested(batch_size=256), Requested(n_epochs=50), Requested(n_epochs=1)):
        got = resolve(requested, counts(examples, trained), num_parameters=B)
        assert 1 <= got.batch_size <= 256
        assert 1 <= got.n_epochs <= 50
        assert 0 <= got.warmup_steps < got.total_steps
        assert 1 <= got.eval_interval_steps <= got.total_steps
        assert got.checkpoint_interval_steps >= 1


def test_the_spec_holds_the_resolved_numbers() -> None:
    base = BaseModelRef(id="tiny", revision="abc")
    spec = build_spec(
        Requested(learning_rate_multiplier=0.5),
        counts(2_000, 130),
        base=base,
        num_parameters=8 * B,
        seed=7,
        max_sequence_tokens=512,
    )
    assert (spec.base, spec.seed, spec.max_sequence_tokens) == (base, 7, 512)
    assert (spec.n_epochs, spec.batch_size, spec.learning_rate_multiplier) == (3, 4, 0.5)
    assert spec.optimizer.learning_rate == pytest.approx(1e-4)
    assert spec.optimizer.warmup_steps == 75
    assert (spec.eval_interval_steps, spec.checkpoint_interval_steps) == (75, 150)


def test_preference_runs_are_shorter_and_gentler() -> None:
    for requested, beta in ((Requested(), 0.1), (Requested(beta=0.5), 0.5)):
        spec = build_spec(
            requested,
            counts(50, 200),
            base=BaseModelRef(id="tiny", revision="abc"),
            num_parameters=8 * B,
            seed=7,
            max_sequence_tokens=512,
            method="dpo",
        )
        assert spec.method == "dpo"
        assert spec.dpo is not None
        assert (spec.dpo.beta, spec.dpo.loss, spec.dpo.label_smoothing) == (beta, "sigmoid", 0.0)
        assert (spec.n_epochs, spec.batch_size) == (3, 1)
        assert spec.optimizer.learning_rate == pytest.approx(2e-5)
    assert resolve(Requested(), counts(5_000), num_parameters=B, method="dpo").batch_size == 10
    assert resolve(Requested(), counts(1_000), num_parameters=B, method="dpo").batch_size == 8


@pytest.mark.parametrize(
    "bad",
    [
        {"n_epochs": 0},
        {"n_epochs": True},
        {"n_epochs": "auto "},
        {"n_epochs": "3"},
        {"n_epochs": 2.5},
        {"batch_size": 257},
        {"learning_rate_multiplier": float("nan")},
        {"learning_rate_multiplier": float("inf")},
        {"learning_rate_multiplier": 0},
        {"beta": 0},
        {"beta": 2.1},
    ],
)
def test_impossible_requests_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Requested.model_validate(bad)
