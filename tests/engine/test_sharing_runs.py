"""Whole runs on examples that begin alike: the same losses and counts as without sharing, and exact resumption."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tests.engine import examples, sharers
from tests.engine.test_run import Recorder, checkpoints, steps
from tests.engine.trainer_process import comparable
from tests.tiny import Family
from worker.contract.events import Evaluation, Event, Finished, Start
from worker.contract.spec import Execution, LoraSettings
from worker.engine import sft
from worker.engine.packing import MicroBatch


@pytest.fixture(scope="module")
def llama(load_base: Callable[[Family], PreTrainedModel]) -> PreTrainedModel:
    return load_base("llama")


@pytest.fixture(scope="module")
def llama_directory(base_directories: dict[Family, Path]) -> Path:
    return base_directories["llama"]


def start(directory: Path, base: Path, *, run: str = "run", resume: str | None = None, **changes: object) -> Start:
    """6 steps of 8 of the 24 training examples each, in 2 epochs; the validation examples begin alike too."""
    settings = {"device": "cpu", "dtype": "float32", "token_budget": 96, "num_threads": 1, "share_prefixes": True}
    spec = examples.spec(
        batch_size=8,
        lora=LoraSettings(rank=4, alpha=8),
        checkpoint_interval_steps=1,
        execution=Execution(**{**settings, **changes}),
    )
    given = sharers.sharing_examples()
    made = examples.start(directory, base, spec, run=run, resume_directory=resume, examples=[*given, *given[::-1]])
    assert made.validation_data is not None
    examples.write_examples(Path(made.validation_data), given)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path, llama: PreTrainedModel) -> list[Event]:
    """An uninterrupted run."""
    return Recorder().run(start(tmp_path_factory.mktemp("whole"), llama_directory), llama)


def adapter(events: list[Event]) -> dict[str, torch.Tensor]:
    last = events[-1]
    assert isinstance(last, Finished)
    return load_file(Path(last.directory) / "adapter_model.safetensors")


def computed_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each training micro-batch to come really computes."""
    counts: list[int] = []
    real = sft.train

    def counting(model: PreTrainedModel, batch: MicroBatch) -> sft.Sums:
        counts.append(len(batch.tokens_T))
        return real(model, batch)

    monkeypatch.setattr(sft, "train", counting)
    return counts


@pytest.mark.parametrize("budget", [1, 64, 96, 4096])
def test_losses_and_counts_are_those_of_a_run_without_sharing(
    whole: list[Event],
    llama: PreTrainedModel,
    llama_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: int,
) -> None:
    counts = computed_tokens(monkeypatch)
    plain = start(tmp_path, llama_directory, run="plain", share_prefixes=False, token_budget=budget)
    each = Recorder().run(plain, llama)
    with_each = sum(counts)
    counts.clear()
    once = Recorder().run(start(tmp_path, llama_directory, token_budget=budget), llama)
    assert with_each == sum(step.tokens for step in steps(each))
    assert sum(counts) == with_each if budget == 1 else sum(counts) < 0.8 * with_each
    for found in (once, whole):
        assert [step.loss for step in steps(found)] == pytest.approx([step.loss for step in steps(each)], abs=1e-5)
        for name in ("step", "epoch", "tokens", "trained_tokens", "token_accuracy"):
            assert [getattr(step, name) for step in steps(found)] == [getattr(step, name) for step in steps(each)]
        losses, expected = (
            [event.loss for event in events if isinstance(event, Evaluation)] for events in (found, each)
        )
        assert losses == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("step", range(1, 7))
def test_resume_equals_uninterrupted(
    whole: list[Event], llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, step: int
) -> None:
    resumed = Recorder().run(start(tmp_path, llama_directory, resume=checkpoints(whole)[step]), llama)
    rest = [event for event in comparable(whole[1:]) if event["step"] > step or event["type"] == "finished"]
    assert comparable(resumed[1:]) == rest
    one, other = adapter(whole), adapter(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_gradient_checkpointing_changes_no_bit(
    whole: list[Event], llama: PreTrainedModel, llama_directory: Path, tmp_path: Path
) -> None:
    twice = Recorder().run(start(tmp_path, llama_directory, gradient_checkpointing=True), llama)
    assert comparable(twice[1:]) == comparable(whole[1:])


# A plain loop (transformers eager, one example at a time, its own AdamW and clipping) gave these losses to 1e-6.
GOLDEN_LOSSES = [6.594114, 6.420578, 6.592227, 6.152434, 6.307163, 6.117156]


def test_golden_losses(whole: list[Event]) -> None:
    assert [step.loss for step in steps(whole)] == pytest.approx(GOLDEN_LOSSES, abs=1e-4)
