"""Is a GPU right? Small models trained on it and on the CPU, before anything is measured. AssertionError if not.

Each check takes the device; on the CPU it compares the CPU with itself, which shows that the check runs.
`tests/gpu` has the same checks as tests.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks import gpu_models, gpu_small, runs
from benchmarks.presets import Example
from worker.contract.events import Adjusted, Checkpoint, Event, Step
from worker.contract.spec import DpoSettings, Execution, LoraSettings
from worker.data.estimate import estimate
from worker.engine import attention, flash, memory, nf4
from worker.engine.documents import documents_of
from worker.engine.execution import Device

GIB = 1 << 30
_CPU: Device = "cpu"
_DROPOUT = LoraSettings(rank=4, alpha=8, dropout=0.1)


class NotHere(Exception):
    """A check that this device has no way to make."""


def float32_agrees(device: Device) -> None:
    """Six steps with clipping and AdamW: losses, and the norms of gradients."""
    found, wanted = (gpu_small.train(where, "float32") for where in (device, _CPU))
    _same_losses(found, wanted, 1e-4)
    _same_norms(found, wanted, 1e-3)


def bfloat16_agrees(device: Device) -> None:
    """Flash attention and narrow LoRA products, where there are such, against the CPU in float32."""
    found, wanted = gpu_small.train(device, "bfloat16"), gpu_small.train(_CPU, "float32")
    _same_losses(found, wanted, 0.01)
    _same_norms(found, wanted, 0.1)


def preference_agrees(device: Device) -> None:
    """Prompts that two answers share, hence more keys than queries."""
    changes: dict[str, Any] = {"method": "dpo", "dpo": DpoSettings(beta=0.1)}
    wanted = gpu_small.train(_CPU, "float32", **changes)
    _same_losses(gpu_small.train(device, "float32", **changes), wanted, 1e-4)
    _same_losses(gpu_small.train(device, "bfloat16", **changes), wanted, 0.02)


def attention_agrees(device: Device) -> None:
    """Packed documents, windows and prefixes in bfloat16, against each document by itself in float32."""
    bounds, prefixes = (0, 40, 41, 200, 260), (None, None, 0, 0)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, heads, bounds[-1], 64, generator=generator) for heads in (4, 2, 2)]
    module = torch.nn.Module()
    for window in (None, 7, 64):
        for shared in (None, prefixes):
            documents = documents_of(bounds, torch.device("cpu"), shared)
            wanted = attention._each_document(given[0], given[1], given[2], documents, None, window, 0.0)
            query, key, value = (tensor.to(device, torch.bfloat16) for tensor in given)
            found, _ = attention.packed_attention(
                module,
                query,
                key,
                value,
                None,
                documents=documents_of(bounds, torch.device(device), shared),
                sliding_window=window,
            )
            error = (found.float().cpu() - wanted).norm() / wanted.norm()
            assert error < 0.02, f"window {window}, prefixes {shared}: off by {error:.3g}"


def flash_attention_is_used(device: Device) -> None:
    """On every card that can: falling back without a word would cost much of the speed."""
    if device == "cpu" or torch.cuda.get_device_capability() < (8, 0):
        raise NotHere("no flash attention on this device")
    for head_size in (64, 128):
        query = torch.zeros(1, 4, 8, head_size, dtype=torch.bfloat16, device=device)
        assert flash.kernel_for(query, query) is not None, f"no flash attention for heads of {head_size}"


def nf4_agrees(device: Device) -> None:
    """The same weights in 4 bits here and on the CPU; then a run on each."""
    for where in ("cpu", device):
        nf4.require(torch.device(where))
    linear = torch.nn.Linear(512, 256, dtype=torch.bfloat16)
    torch.nn.init.normal_(linear.weight, 0, 0.02, generator=torch.Generator().manual_seed(0))
    on_cpu = nf4.Nf4Linear.of(linear).weight.float()
    there = nf4.Nf4Linear.of(linear.to(device)).weight.float().cpu()
    error = ((there - on_cpu).norm() / on_cpu.norm()).item()
    assert error < 0.01, f"unpacked weights are off by {error:.3g}"
    found = gpu_small.train(device, "bfloat16", quantization="nf4")
    wanted = gpu_small.train(_CPU, "float32", quantization="nf4")
    _same_losses(found, wanted, 0.02)


def checkpointing_agrees(device: Device) -> None:
    """Activations computed again give what was kept, dropout included."""
    twice, kept = (gpu_small.train(device, "bfloat16", lora=_DROPOUT, checkpointing=on) for on in (True, False))
    _same_losses(twice, kept, 0 if device == "cpu" else 1e-3)


def resume_agrees(device: Device) -> None:
    """The steps after a checkpoint, dropout included; bit for bit on the CPU, to rounding on a GPU."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = gpu_small.train(device, "float32", lora=_DROPOUT, directory=Path(scratch) / "whole")
        (third,) = [event for event in whole if isinstance(event, Checkpoint) and event.step == 3]
        rest = gpu_small.train(
            device, "float32", lora=_DROPOUT, directory=Path(scratch) / "rest", resume=third.directory
        )
    assert [step.step for step in gpu_small.steps(rest)] == [4, 5, 6]
    _same_losses(
        rest, [event for event in whole if isinstance(event, Step) and event.step > 3], 0 if device == "cpu" else 1e-4
    )


def out_of_memory_is_survived(device: Device) -> None:
    """A card without room for a micro-batch halves the budget until one fits, and computes the same."""
    if device == "cpu":
        raise NotHere("a limit on the CPU's memory would end the process")
    settings: dict[str, Any] = {"batch_size": 64, "max_sequence_tokens": 2048, "data": _long_examples(128)}
    tokens = 1 << 17
    gpu_small.base(device, "float32")
    memory.free()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    gpu_small.train(device, "float32", token_budget=tokens, **settings)
    taken = torch.cuda.max_memory_reserved() - before
    memory.free()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.7 * taken) / total)
        events = gpu_small.train(device, "float32", token_budget=tokens, **settings)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    budgets = [event.execution.token_budget for event in events if isinstance(event, Adjusted)]
    assert budgets, "nothing ran out of memory"
    assert budgets[0] == tokens // 2, budgets
    _same_losses(events, gpu_small.train(device, "float32", token_budget=budgets[-1], **settings), 1e-5)


def memory_is_predicted(device: Device) -> None:
    """Within a fifth of what tensors held, on a model whose parts are large enough to tell."""
    if device == "cpu":
        raise NotHere("benchmarks.memory_model measures the CPU")
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    memory.free()
    before = torch.cuda.memory_allocated()
    model = gpu_models.build(config, torch.device(device), None)
    for checkpointing in (False, True):
        spec = runs.spec("memory", batch_size=16, max_sequence_tokens=1024)
        chosen = Execution(
            device=device,
            dtype="bfloat16",
            token_budget=16_384,
            num_threads=1,
            gradient_checkpointing=checkpointing,
        )
        memory.free()
        torch.cuda.reset_peak_memory_stats()
        gpu_small.carry_out(model, spec, chosen, _long_examples(32, 1024))
        measured = torch.cuda.max_memory_allocated() - before
        predicted = estimate(spec, gpu_models.geometry_of(config), chosen)
        # Its overhead is what the driver and loaded code take, which the allocator does not count.
        ratio = (predicted.total - predicted.overhead) / measured
        print(f"  checkpointing {checkpointing}: predicted {ratio:.2f} of {measured / GIB:.2f} GiB", flush=True)
        assert 0.8 <= ratio <= 1.25, f"predicted {ratio:.2f} times what was measured"


CHECKS: dict[str, Callable[[Device], None]] = {
    check.__name__: check
    for check in (
        flash_attention_is_used,
        attention_agrees,
        float32_agrees,
        bfloat16_agrees,
        preference_agrees,
        nf4_agrees,
        checkpointing_agrees,
        resume_agrees,
        out_of_memory_is_survived,
        memory_is_predicted,
    )
}


def _same_losses(found: list[Event], wanted: list[Event], tolerance: float) -> None:
    one, other = ([step.loss for step in gpu_small.steps(events)] for events in (found, wanted))
    _close(one, other, tolerance)


def _same_norms(found: list[Event], wanted: list[Event], tolerance: float) -> None:
    one, other = ([step.gradient_norm for step in gpu_small.steps(events)] for events in (found, wanted))
    _close(one, other, tolerance)


def _close(found: list[float], wanted: list[float], tolerance: float) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert abs(one - other) <= tolerance * abs(other), f"{found} instead of {wanted}"


def _long_examples(count: int, length: int = 2048) -> list[Example]:
    tokens = [number % gpu_small.VOCAB_SIZE for number in range(length)]
    return [(tokens, [0.0] + [1.0] * (length - 1))] * count
