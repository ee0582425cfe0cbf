"""A small model and short runs on it, for what must be right before a GPU is measured."""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedModel

from benchmarks import presets, runs
from worker.contract.events import Event, Step
from worker.contract.spec import Execution
from worker.engine import base_model, execution, run
from worker.engine.execution import Device, Dtype

VOCAB_SIZE = 512


@cache
def base(device: Device, dtype: Dtype, quantization: Any = None) -> PreTrainedModel:
    """Two layers with heads of 64, as flash attention knows them; loaded from a directory, as in service."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    with tempfile.TemporaryDirectory() as scratch:
        directory = presets.build(config, Path(scratch) / "base")
        return base_model.load(directory, device=device, dtype=dtype, quantization=quantization, tick=lambda: None)


def train(
    device: Device,
    dtype: Dtype,
    *,
    directory: Path | None = None,
    data: Sequence[Any] | None = None,
    token_budget: int = 160,
    checkpointing: bool = False,
    resume: str | None = None,
    **changes: Any,
) -> list[Event]:
    """By default six steps of four examples, or pairs, with a checkpoint after the third that lies in `directory`."""
    execution.apply(dtype, torch.get_num_threads())
    model = base(device, dtype, changes.get("quantization"))
    spec = runs.spec(
        "small", **{"batch_size": 4, "optimizer": runs.OPTIMIZER, "checkpoint_interval_steps": 3, **changes}
    )
    chosen = Execution(
        device=device,
        dtype=dtype,
        token_budget=token_budget,
        num_threads=torch.get_num_threads(),
        gradient_checkpointing=checkpointing,
    )
    return carry_out(model, spec, chosen, data or _examples(spec.method), directory=directory, resume=resume)


def carry_out(
    model: PreTrainedModel,
    spec: Any,
    chosen: Execution,
    data: Sequence[Any],
    *,
    directory: Path | None = None,
    resume: str | None = None,
) -> list[Event]:
    """Everything that a trainer does for a run but loading its base; the events but the last."""
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) if directory is None else directory
        model.config.save_pretrained(root / "base")
        start = runs.start(root, root / "base", spec, list(data)).model_copy(update={"resume_directory": resume})
        run.carry_out(start, model, chosen, emit=events.append, stop_request=lambda: None)
    return events


def steps(events: list[Event]) -> list[Step]:
    return [event for event in events if isinstance(event, Step)]


def _examples(method: str) -> Sequence[Any]:
    if method == "dpo":
        return presets.lognormal_pairs(24, vocab_size=VOCAB_SIZE, mean=24, sigma=0.6, longest=80)
    return presets.lognormal_examples(24, vocab_size=VOCAB_SIZE, mean=40, sigma=0.6, longest=100)
