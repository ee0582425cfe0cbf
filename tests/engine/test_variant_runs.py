"""Whole runs of adapter variants and with noise: pinned losses, resume bit for bit from every step."""

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
from worker.contract.events import Evaluation, Event, Finished
from worker.contract.spec import Execution, LoraSettings

VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"lora": LoraSettings(rank=4, alpha=8, rslora=True)},
    "dora": {"lora": LoraSettings(rank=4, alpha=8, dora=True)},
    "some layers": {"lora": LoraSettings(rank=4, alpha=8, target_modules=("q_proj", "v_proj"))},
    "noise": {"lora": LoraSettings(rank=4, alpha=8), "neftune_noise_alpha": 5.0},
}
# A plain padded loop (transformers eager, PEFT, its own AdamW and schedule) gave these losses to 1e-6.
GOLDEN_LOSSES: dict[str, list[float]] = {
    "rslora": [6.53218, 6.530498, 6.463006, 6.474449, 6.473645, 6.539696],
    "dora": [6.53218, 6.533994, 6.466815, 6.480005, 6.491167, 6.564125],
    "some layers": [6.53218, 6.535282, 6.466765, 6.487914, 6.514492, 6.605549],
    "noise": [6.552938, 6.557207, 6.395411, 6.483214, 6.562853, 6.726538],
}


@pytest.fixture(scope="module")
def llama(load_base: Callable[[Family], PreTrainedModel]) -> PreTrainedModel:
    return load_base("llama")


@pytest.fixture(scope="module")
def llama_directory(base_directories: dict[Family, Path]) -> Path:
    return base_directories["llama"]


def weights(events: list[Event]) -> dict[str, torch.Tensor]:
    assert isinstance(events[-1], Finished)
    return load_file(Path(events[-1].directory) / "adapter_model.safetensors")


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_losses(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, variant: str) -> None:
    spec = examples.spec(**VARIANTS[variant], n_epochs=1)
    losses = [step.loss for step in steps(Recorder().run(examples.start(tmp_path, llama_directory, spec), llama))]
    assert losses == pytest.approx(GOLDEN_LOSSES[variant], abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": LoraSettings(rank=4, alpha=8, dropout=0.2, dora=True, rslora=True)},
        {"lora": LoraSettings(rank=4, alpha=8, dropout=0.2), "neftune_noise_alpha": 5.0, "keep_best": True},
    ],
    ids=["dora", "noise"],
)
def test_resume_equals_uninterrupted_from_every_step(
    llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    spec = examples.spec(**changes, checkpoint_interval_steps=1)
    whole = Recorder().run(examples.start(tmp_path, llama_directory, spec, run="whole"), llama)
    assert len(checkpoints(whole)) == 12
    for step, directory in checkpoints(whole).items():
        start = examples.start(tmp_path, llama_directory, spec, run=f"from-{step}", resume_directory=directory)
        resumed = Recorder().run(start, llama)
        told = [event for event in comparable(resumed[1:]) if event["type"] in ("step", "evaluation")]
        rest = [event for event in comparable(whole[1:]) if event["type"] in ("step", "evaluation")]
        assert told == [event for event in rest if event["step"] > step]
        assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())


def test_noise_is_the_same_for_any_token_budget(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    found = []
    for budget in (1, 64, 4096):
        execution = Execution(device="cpu", dtype="float32", token_budget=budget, num_threads=1)
        spec = examples.spec(**VARIANTS["noise"], execution=execution)
        start = examples.start(tmp_path, llama_directory, spec, run=f"budget-{budget}")
        found.append([step.loss for step in steps(Recorder().run(start, llama))])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_evaluation_has_no_noise(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    """With a rate so low that nothing moves, noise changes the training losses and not the validation's."""
    found = {}
    for alpha in (0.0, 20.0):
        optimizer = examples.spec().optimizer.model_copy(update={"learning_rate": 1e-12})
        spec = examples.spec(neftune_noise_alpha=alpha, optimizer=optimizer, n_epochs=1)
        events = Recorder().run(examples.start(tmp_path, llama_directory, spec, run=f"noise-{alpha}"), llama)
        valid = [event.loss for event in events if isinstance(event, Evaluation)]
        found[alpha] = ([step.loss for step in steps(events)], valid)
    assert found[20.0][1] == pytest.approx(found[0.0][1], abs=1e-6)
    assert max(abs(one - other) for one, other in zip(found[20.0][0], found[0.0][0], strict=True)) > 1e-3
