from typing import Any

import pytest
from pydantic import ValidationError

from worker.contract.errors import TrainError
from worker.contract.extension import AdapterOptions, Extension
from worker.contract.spec import BaseModelRef, LoraSettings, TrainSpec
from worker.data.auto import DatasetCounts, InitialAdapter, Requested, base_learning_rate, build_spec, resolve

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
        extension=Extension(),
    )
    assert (spec.base, spec.seed, spec.max_sequence_tokens) == (base, 7, 512)
    assert (spec.n_epochs, spec.batch_size, spec.learning_rate_multiplier) == (3, 4, 0.5)
    assert spec.optimizer.learning_rate == pytest.approx(1e-4)
    assert spec.optimizer.warmup_steps == 75
    assert (spec.eval_interval_steps, spec.checkpoint_interval_steps) == (75, 150)


def spec_of(
    requested: Requested | None = None, initial_adapter: InitialAdapter | None = None, **asked: Any
) -> TrainSpec:
    return build_spec(
        requested or Requested(),
        counts(2_000, 130),
        base=BaseModelRef(id="tiny", revision="abc"),
        num_parameters=8 * B,
        seed=7,
        max_sequence_tokens=512,
        extension=Extension.model_validate(asked),
        initial_adapter=initial_adapter,
    )


def test_preference_runs_are_shorter_and_gentler() -> None:
    for requested, beta in ((Requested(), 0.1), (Requested(beta=0.5), 0.5)):
        spec = build_spec(
            requested,
            counts(50, 200),
            base=BaseModelRef(id="tiny", revision="abc"),
            num_parameters=8 * B,
            seed=7,
            max_sequence_tokens=512,
            extension=Extension.model_validate({"dpo": {"label_smoothing": 0.1}}),
            method="dpo",
        )
        assert spec.method == "dpo"
        assert spec.dpo is not None
        assert (spec.dpo.beta, spec.dpo.loss, spec.dpo.label_smoothing) == (beta, "sigmoid", 0.1)
        assert (spec.n_epochs, spec.batch_size) == (3, 1)
        assert spec.optimizer.learning_rate == pytest.approx(2e-5)
    assert resolve(Requested(), counts(5_000), num_parameters=B, method="dpo").batch_size == 10
    assert resolve(Requested(), counts(1_000), num_parameters=B, method="dpo").batch_size == 8


def test_an_extension_that_says_nothing_changes_nothing() -> None:
    spec = spec_of()
    assert spec.lora == LoraSettings(rank=16, alpha=32)
    assert (spec.optimizer.schedule, spec.optimizer.weight_decay, spec.optimizer.max_gradient_norm) == ("cosine", 0, 1)
    assert (spec.quantization, spec.initial_adapter, spec.early_stopping_patience, spec.keep_best) == (
        None,
        None,
        None,
        False,
    )
    assert (spec.neftune_noise_alpha, spec.train_on_last_turn_only) == (0, False)


def test_every_field_of_the_extension_reaches_the_spec() -> None:
    spec = spec_of(
        adapter={"rank": 8, "dropout": 0.1, "target_modules": ["v_proj", "q_proj"], "rslora": True, "dora": True},
        quantization="nf4",
        learning_rate=1e-3,
        schedule="linear",
        warmup_steps=9,
        weight_decay=0.01,
        max_gradient_norm=0.5,
        eval_interval_steps=11,
        checkpoint_interval_steps=13,
        early_stopping={"patience": 4},
        keep_best=True,
        neftune_noise_alpha=5,
        train_on_last_turn_only=True,
    )
    assert spec.lora.model_dump() == {
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.1,
        "target_modules": ("q_proj", "v_proj"),
        "rslora": True,
        "dora": True,
    }
    optimizer = spec.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps) == (1e-3, "linear", 9)
    assert (optimizer.weight_decay, optimizer.max_gradient_norm) == (0.01, 0.5)
    assert spec.learning_rate_multiplier == pytest.approx(5.0)
    assert (spec.quantization, spec.eval_interval_steps, spec.checkpoint_interval_steps) == ("nf4", 11, 13)
    assert (spec.early_stopping_patience, spec.keep_best) == (4, True)
    assert (spec.neftune_noise_alpha, spec.train_on_last_turn_only) == (5, True)


def test_alpha_is_twice_the_rank_unless_it_is_given() -> None:
    assert spec_of(adapter={"rank": 64}).lora.alpha == 128
    assert spec_of(adapter={"rank": 64, "alpha": 16}).lora.alpha == 16


def test_a_continued_run_keeps_the_shape_of_its_adapter() -> None:
    lora = LoraSettings(rank=4, alpha=4, target_modules=("q_proj",))
    spec = spec_of(initial_adapter=InitialAdapter(model="ft:tiny:a::b", lora=lora))
    assert (spec.initial_adapter, spec.lora) == ("ft:tiny:a::b", lora)


def test_a_run_that_would_end_in_its_warm_up_is_refused() -> None:
    assert spec_of(warmup_steps=1499).optimizer.warmup_steps == 1499
    with pytest.raises(TrainError) as refused:
        spec_of(warmup_steps=1500)
    assert (refused.value.code, refused.value.param) == ("invalid_hyperparameters", "hone.warmup_steps")
    assert "only 1500 steps" in refused.value.message


def test_the_defaults_of_extension_and_spec_are_the_same() -> None:
    assert spec_of().lora == LoraSettings()
    assert set(AdapterOptions.model_fields) == set(LoraSettings.model_fields)


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
