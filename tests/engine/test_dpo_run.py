"""One DPO run in this process: its events, resuming it, and what it refuses."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tests.engine import examples, pairs
from tests.engine.test_run import Recorder, checkpoints, steps
from tests.engine.trainer_process import comparable
from tests.tiny import Family
from worker.contract.errors import TrainError
from worker.contract.events import Evaluation, Event, Finished, Started
from worker.contract.spec import DpoSettings, Execution, LoraSettings, OptimizerSettings


@pytest.fixture(scope="module")
def llama(load_base: Callable[[Family], PreTrainedModel]) -> PreTrainedModel:
    return load_base("llama")


@pytest.fixture(scope="module")
def llama_directory(base_directories: dict[Family, Path]) -> Path:
    return base_directories["llama"]


@pytest.fixture(scope="module", params=[0.0, 0.1], ids=["shared-prompts", "dropout"])
def lora(request: pytest.FixtureRequest) -> LoraSettings:
    return LoraSettings(rank=4, alpha=8, dropout=request.param)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, llama_directory: Path, llama: PreTrainedModel, lora: LoraSettings
) -> list[Event]:
    """An uninterrupted run."""
    start = pairs.start(tmp_path_factory.mktemp("whole"), llama_directory, pairs.spec(lora=lora))
    return Recorder().run(start, llama)


def test_a_run_begins_at_ln_2_and_reports_rewards(whole: list[Event]) -> None:
    taken = steps(whole)
    assert len(taken) == 12
    assert taken[0].loss == pytest.approx(math.log(2), abs=1e-12)
    assert (taken[0].reward_chosen, taken[0].reward_rejected) == (0, 0)
    evaluations = [event for event in whole if isinstance(event, Evaluation)]
    assert [(event.step, event.kind) for event in evaluations][-2:] == [(12, "valid"), (12, "full_valid")]
    for event in [*taken, *evaluations]:
        assert event.reward_chosen is not None
        assert event.reward_rejected is not None
        assert 0 <= event.token_accuracy <= 1
    assert taken[-1].trained_tokens > 0


@pytest.mark.parametrize("step", [4, 6, 8])
def test_resume_equals_uninterrupted(
    whole: list[Event], llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, lora: LoraSettings, step: int
) -> None:
    directory = checkpoints(whole)[step]
    start = pairs.start(tmp_path, llama_directory, pairs.spec(lora=lora), resume_directory=directory)
    resumed = Recorder().run(start, llama)
    assert isinstance(resumed[0], Started)
    assert resumed[0].resumed_from_step == step
    rest = [event for event in comparable(whole[1:]) if event["step"] > step or event["type"] == "finished"]
    assert comparable(resumed[1:]) == rest
    last = [events[-1] for events in (whole, resumed)]
    one, other = (load_file(Path(event.directory) / "adapter_model.safetensors") for event in last)  # pyright: ignore
    assert all(torch.equal(one[name], other[name]) for name in one)


# A plain loop (transformers eager, two sequences a pair, its own AdamW) gave these losses to 5e-6.
GOLDEN_LOSSES: dict[str, list[float]] = {
    "sigmoid": [0.693147, 0.696145, 0.693932, 0.702470, 0.700218, 0.716400],
    "smoothed": [0.693147, 0.695552, 0.693803, 0.700721, 0.698762, 0.711842],
    "ipo": [2.777778, 2.778060, 2.786918, 2.717404, 2.789527, 2.915183],
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sigmoid", DpoSettings(beta=0.3)),
        ("smoothed", DpoSettings(beta=0.3, label_smoothing=0.1)),
        ("ipo", DpoSettings(beta=0.3, loss="ipo")),
    ],
)
def test_golden_losses(
    llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, name: str, settings: DpoSettings
) -> None:
    start = pairs.start(tmp_path, llama_directory, pairs.spec(dpo=settings, n_epochs=1))
    losses = [step.loss for step in steps(Recorder().run(start, llama))]
    assert losses == pytest.approx(GOLDEN_LOSSES[name], abs=1e-4)


def test_any_token_budget_gives_the_same_losses(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    found = []
    for budget in (1, 64, 4096):
        execution = Execution(device="cpu", dtype="float32", token_budget=budget, num_threads=1)
        start = pairs.start(tmp_path, llama_directory, pairs.spec(execution=execution), run=f"budget-{budget}")
        found.append([step.loss for step in steps(Recorder().run(start, llama))])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_training_prefers(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    spec = pairs.spec(n_epochs=4, optimizer=OptimizerSettings(learning_rate=0.01), checkpoint_interval_steps=1000)
    events = Recorder().run(pairs.start(tmp_path, llama_directory, spec), llama)
    last = steps(events)[-1]
    assert last.loss < 0.2
    assert last.token_accuracy == 1
    assert isinstance(events[-1], Finished)


def test_a_supervised_file_is_refused(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    start = examples.start(tmp_path, llama_directory, pairs.spec())
    with pytest.raises(TrainError) as caught:
        Recorder().run(start, llama)
    assert (caught.value.code, caught.value.param) == ("invalid_token_file", "training_file")


def test_noise_on_embeddings_is_refused(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    start = pairs.start(tmp_path, llama_directory, pairs.spec(neftune_noise_alpha=5.0))
    with pytest.raises(TrainError) as caught:
        Recorder().run(start, llama)
    assert caught.value.param == "hone.neftune_noise_alpha"
