"""Fitting into memory: chosen before a run, and corrected when a run finds less than was there."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tests.engine import examples
from tests.engine.test_run import Recorder, checkpoints, steps
from tests.engine.trainer_process import REPOSITORY, comparable
from tests.tiny import Family
from tests.unit.test_estimate import LLAMA_8B
from worker.contract.errors import TrainError
from worker.contract.events import Adjusted, Event, Finished
from worker.contract.spec import Execution, LoraSettings
from worker.data.estimate import geometry
from worker.engine import execution, memory, sft
from worker.engine.packing import MicroBatch

GIB = 1 << 30
LLAMA = geometry(LLAMA_8B)


@pytest.fixture(scope="module")
def llama(load_base: Callable[[Family], PreTrainedModel]) -> PreTrainedModel:
    return load_base("llama")


@pytest.fixture(scope="module")
def llama_directory(base_directories: dict[Family, Path]) -> Path:
    return base_directories["llama"]


def choose(monkeypatch: pytest.MonkeyPatch, free: int, **changes: Any) -> Execution:
    loaded = changes.pop("base_is_loaded", False)
    monkeypatch.setattr(execution, "_free_memory_bytes", lambda _device: free)
    spec = examples.spec(**{"max_sequence_tokens": 8192, "batch_size": 16, "lora": LoraSettings(rank=16), **changes})
    form = execution.Form("cuda", "bfloat16", None)
    return execution.choose(spec, LLAMA, form=form, threads=1, base_is_loaded=loaded)


def test_activations_are_kept_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = choose(monkeypatch, 300 * GIB, max_sequence_tokens=2048)
    assert (roomy.token_budget, roomy.gradient_checkpointing, roomy.share_prefixes) == (16384, False, True)
    less = choose(monkeypatch, 139 * GIB, max_sequence_tokens=2048)
    assert (less.token_budget, less.gradient_checkpointing) == (8192, False)
    tight = choose(monkeypatch, 40 * GIB)
    assert tight.gradient_checkpointing


def test_a_base_that_is_loaded_needs_no_second_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainError):
        choose(monkeypatch, 15 * GIB)
    choose(monkeypatch, 15 * GIB, base_is_loaded=True)


def test_a_run_that_cannot_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        TrainError, match=r"needs about \d+\.\d GB.* can give it 14\.6 GB.* base model held in NF4"
    ) as one:
        choose(monkeypatch, 17 * GIB)
    assert (one.value.code, one.value.param) == ("does_not_fit", "model")
    with pytest.raises(TrainError, match=r"with the base model held in NF4 and examples of at most 4096 tokens"):
        choose(monkeypatch, 13 * GIB)
    with pytest.raises(TrainError, match="smaller base model"):
        choose(monkeypatch, GIB)
    with pytest.raises(TrainError, match=r"at most \d+ tokens"):
        choose(monkeypatch, 11 * GIB, quantization="nf4", max_sequence_tokens=131_072)


@pytest.mark.parametrize("hardware", [True, False])
@pytest.mark.parametrize("files", [torch.float32, torch.bfloat16, torch.float16])
def test_only_large_bases_are_computed_in_16_bits_on_a_cpu_that_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hardware: bool, files: torch.dtype
) -> None:
    """Elsewhere files of 16 bits are held as they are, and computed in float32."""
    monkeypatch.setattr(execution, "available_device", lambda: "cpu")
    monkeypatch.setattr(execution, "cpu_computes_in_bfloat16", lambda: hardware)
    save_file({"a": torch.ones(2, 2, dtype=files), "positions": torch.arange(2)}, tmp_path / "model.safetensors")
    small = geometry({**LLAMA_8B, "num_hidden_layers": 1, "vocab_size": 512})
    held = None if files == torch.float32 else str(files).removeprefix("torch.")
    in_float32 = execution.Form("cpu", "float32", cast("Any", held))
    large = execution.Form("cpu", "bfloat16", None) if hardware else in_float32
    assert execution.form_of_base(None, LLAMA, tmp_path) == large
    assert execution.form_of_base(None, small, tmp_path) == in_float32


def test_a_stated_form_is_kept_and_files_of_several_types_or_none_are_held_in_float32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(execution, "available_device", lambda: "cpu")
    monkeypatch.setattr(execution, "cpu_computes_in_bfloat16", lambda: True)
    small = geometry({**LLAMA_8B, "num_hidden_layers": 1, "vocab_size": 512})
    for form in (
        execution.Form("cpu", "bfloat16", None),
        execution.Form("cpu", "float32", "float16"),
        execution.Form("cpu", "float32", None),
    ):
        stated = Execution(**form._asdict(), token_budget=64, num_threads=1)
        assert execution.form_of_base(stated, LLAMA, tmp_path) == form
    save_file({"a": torch.ones(2, 2, dtype=torch.bfloat16), "b": torch.ones(2)}, tmp_path / "model.safetensors")
    assert execution.form_of_base(None, small, tmp_path).weights_dtype is None
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert execution.form_of_base(None, small, tmp_path).weights_dtype is None
    assert execution.form_of_base(None, small, tmp_path / "nowhere").weights_dtype is None


def carry_out(model: PreTrainedModel, base: Path, directory: Path, run: str, **changes: Any) -> list[Event]:
    settings = {"device": "cpu", "dtype": "float32", "token_budget": 160, "num_threads": 1, **changes}
    resume = settings.pop("resume_directory", None)
    spec = examples.spec(
        batch_size=8, lora=settings.pop("lora", LoraSettings(rank=4, alpha=8)), execution=Execution(**settings)
    )
    return Recorder().run(examples.start(directory, base, spec, run=run, resume_directory=resume), model)


def test_gradient_checkpointing_changes_no_bit(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    dropout = LoraSettings(rank=4, alpha=8, dropout=0.1)
    kept = carry_out(llama, llama_directory, tmp_path, "kept", lora=dropout)
    twice = carry_out(llama, llama_directory, tmp_path, "twice", lora=dropout, gradient_checkpointing=True)
    assert not llama.is_activation_checkpointing
    assert comparable(twice[1:]) == comparable(kept[1:])


def fail_above(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches of more tokens do not fit, and fail half-way: with part of the gradient added."""
    for name in ("train", "evaluate"):
        real = getattr(sft, name)

        def limited(model: PreTrainedModel, batch: MicroBatch, real: Callable[..., Any] = real) -> Any:
            sums = real(model, batch)
            if len(batch.tokens_T) > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return sums

        monkeypatch.setattr(sft, name, limited)


def test_out_of_memory_halves_the_budget_and_goes_on(
    llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = carry_out(llama, llama_directory, tmp_path, "undisturbed")
    fail_above(90, monkeypatch)
    events = carry_out(llama, llama_directory, tmp_path, "disturbed")
    adjusted = [event for event in events if isinstance(event, Adjusted)]
    assert [event.execution.token_budget for event in adjusted] == [80]
    assert events.index(adjusted[0]) < events.index(steps(events)[0])
    assert [step.loss for step in steps(events)] == pytest.approx([step.loss for step in steps(undisturbed)], abs=1e-5)
    assert isinstance(events[-1], Finished)
    assert '"token_budget": 80' in (Path(events[-1].directory) / "README.md").read_text()
    # Resumed with the budget that was stored, the rest is the same, bit for bit.
    directory = checkpoints(events)[4]
    rest = carry_out(llama, llama_directory, tmp_path, "resumed", token_budget=80, resume_directory=directory)
    assert comparable(list(steps(rest))) == comparable(list(steps(events)))[4:]


def test_when_no_single_example_fits_the_run_ends(
    llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_above(0, monkeypatch)
    with pytest.raises(TrainError, match="max_sequence_tokens") as caught:
        carry_out(llama, llama_directory, tmp_path, "hopeless")
    assert caught.value.code == "out_of_memory"
    assert not any("lora" in name for name, _ in llama.named_parameters())


def test_other_errors_are_not_taken_for_it() -> None:
    def wrong() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        memory.retrying(wrong, lambda: None)


def test_what_the_cpu_says_when_memory_ends_is_understood() -> None:
    """A real limit on a real process, in which torch's own allocator fails."""
    code = """
import json, resource, torch
from worker.engine import memory
used = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + (256 << 20), used + (256 << 20)))
sizes = [1 << 30]
def step():
    return torch.ones(sizes[-1], dtype=torch.uint8).sum().item()
print(json.dumps([memory.retrying(step, lambda: sizes.append(sizes[-1] // 2)), sizes]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    found, sizes = json.loads(done.stdout)
    assert found == sizes[-1] <= 1 << 28
    assert len(sizes) > 2
