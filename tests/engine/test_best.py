"""Early stopping and the best adapter, by the loss on the validation sample."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tests.engine import examples
from tests.engine.test_run import Recorder, checkpoints, steps
from tests.engine.trainer_process import comparable
from tests.tiny import Family
from worker.contract.errors import TrainError
from worker.contract.events import Checkpoint, Evaluation, Event, Finished, Start
from worker.contract.spec import OptimizerSettings, TrainSpec
from worker.engine import best, checkpoint

# Random tokens cannot be learned, so learning the training examples by heart makes validation worse.
OVERFITTING: dict[str, Any] = {
    "optimizer": OptimizerSettings(learning_rate=0.02, schedule="constant"),
    "eval_interval_steps": 1,
    "checkpoint_interval_steps": 2,
}


@pytest.fixture(scope="module")
def llama(load_base: Callable[[Family], PreTrainedModel]) -> PreTrainedModel:
    return load_base("llama")


@pytest.fixture
def start(base_directories: dict[Family, Path], tmp_path: Path) -> Callable[..., Start]:
    def start(spec: TrainSpec, run: str = "run", resume_directory: str | None = None) -> Start:
        return examples.start(tmp_path, base_directories["llama"], spec, run=run, resume_directory=resume_directory)

    return start


def valid_losses(events: list[Event]) -> dict[int, float]:
    return {event.step: event.loss for event in events if isinstance(event, Evaluation) and event.kind == "valid"}


def best_step(events: list[Event]) -> int:
    losses = valid_losses(events)
    return min(losses, key=lambda step: losses[step])


def weights(directory: str) -> dict[str, torch.Tensor]:
    return load_file(Path(directory) / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_stops_after_the_patience_and_ends_as_any_run(llama: PreTrainedModel, start: Callable[..., Start]) -> None:
    events = Recorder().run(start(examples.spec(**OVERFITTING, early_stopping_patience=2)), llama)
    last = best_step(events) + 2
    assert last < 12
    assert [event.type for event in events[-5:]] == ["evaluation", "evaluation", "step", "checkpoint", "finished"]
    assert [event.kind for event in events[-5:-3] if isinstance(event, Evaluation)] == ["valid", "full_valid"]
    finished, saved = events[-1], events[-2]
    assert isinstance(finished, Finished)
    assert isinstance(saved, Checkpoint)
    assert (finished.step, saved.step, saved.is_last) == (last, last, True)
    assert [event.is_last for event in events if isinstance(event, Checkpoint)].count(True) == 1
    assert same(weights(finished.directory), weights(f"{saved.directory}/adapter"))


def test_the_best_adapter_is_the_result(llama: PreTrainedModel, start: Callable[..., Start]) -> None:
    spec = examples.spec(**{**OVERFITTING, "checkpoint_interval_steps": 1}, keep_best=True)
    events = Recorder().run(start(spec), llama)
    finished, kept = events[-1], best_step(events)
    assert isinstance(finished, Finished)
    assert (finished.step, kept < 12) == (12, True)
    assert same(weights(finished.directory), weights(f"{checkpoints(events)[kept]}/adapter"))
    card = (Path(finished.directory) / "README.md").read_text()
    assert f"| Adapter of step | {kept}, the best by validation loss |" in card
    assert f"| Validation loss, best sample | {valid_losses(events)[kept]:.6f} |" in card


@pytest.mark.parametrize("patience", [2, None])
def test_resume_equals_uninterrupted(llama: PreTrainedModel, start: Callable[..., Start], patience: int | None) -> None:
    spec = examples.spec(**OVERFITTING, keep_best=True, early_stopping_patience=patience)
    whole = Recorder().run(start(spec, "whole"), llama)
    assert isinstance(whole[-1], Finished)
    for step, directory in checkpoints(whole).items():
        resumed = Recorder().run(start(spec, f"from-{step}", directory), llama)
        assert comparable(list(steps(resumed))) == comparable(list(steps(whole)))[step:]
        assert isinstance(resumed[-1], Finished)
        assert resumed[-1].step == whole[-1].step
        assert same(weights(resumed[-1].directory), weights(whole[-1].directory))


@pytest.mark.parametrize(
    ("changes", "param"),
    [({"early_stopping_patience": 1}, "hone.early_stopping"), ({"keep_best": True}, "hone.keep_best")],
)
def test_both_need_validation_examples(
    llama: PreTrainedModel, start: Callable[..., Start], changes: dict[str, Any], param: str
) -> None:
    given = start(examples.spec(**changes)).model_copy(update={"validation_data": None})
    with pytest.raises(TrainError, match="needs a validation_file") as caught:
        Recorder().run(given, llama)
    assert (caught.value.code, caught.value.param) == ("missing_validation_file", param)


def test_only_a_lower_finite_loss_is_better() -> None:
    state = checkpoint.State(
        spec=examples.spec(early_stopping_patience=2), step=0, data="", next_step_seed=0, trained_tokens=0
    )
    seen = []
    for step, loss in enumerate((float("nan"), 2.0, 2.0, 1.5, float("inf"), float("nan")), start=1):
        state = best.judged(state.model_copy(update={"step": step, "valid_loss": loss}))
        seen.append((state.best_loss, state.best_step, state.evaluations_since_best, best.is_exhausted(state)))
    assert seen == [
        (None, None, 1, False),
        (2.0, 2, 0, False),
        (2.0, 2, 1, False),
        (1.5, 4, 0, False),
        (1.5, 4, 1, False),
        (1.5, 4, 2, True),
    ]
