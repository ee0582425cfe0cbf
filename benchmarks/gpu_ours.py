"""Our side of the GPU benchmark: the run that the trainer carries out, on a base that was built in place."""

import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_models, gpu_shapes, runs
from worker.contract.events import Adjusted, Event, Finished, Started, Step
from worker.contract.spec import Execution, TrainSpec
from worker.data.estimate import estimate
from worker.engine import execution, memory, run
from worker.engine.execution import Device

GIB = 1 << 30


def measure(name: str, shape_names: list[str], device: Device, *, tiny: bool) -> Iterator[dict[str, Any]]:
    """Build the model once, then train it on each shape; the first step of each is for warming up."""
    execution.apply("bfloat16", torch.get_num_threads())
    subject = gpu_models.SUBJECTS[name]
    config = subject.config(tiny=tiny)
    reset_peak(device)
    model = gpu_models.build(config, torch.device(device), subject.quantization)
    print(f"{name}: built, {peak_bytes(device) / GIB:.1f} GiB at most", flush=True)
    geometry = gpu_models.geometry_of(config)
    for shape_name in shape_names:
        shape = gpu_shapes.shapes(tiny=tiny)[shape_name]
        tokens, steps = subject.amounts(tiny=tiny)
        data = gpu_shapes.examples(shape, tokens=tokens * steps, vocab_size=geometry.vocab)
        spec = runs.spec(
            name,
            quantization=subject.quantization,
            batch_size=-(-len(data) // steps),
            max_sequence_tokens=shape.longest,
            optimizer=runs.OPTIMIZER,
        )
        form = execution.Form(device, "bfloat16", None)
        chosen = execution.choose(spec, geometry, form=form, threads=torch.get_num_threads(), base_is_loaded=True)
        memory.free()
        reset_peak(device)
        events = _carry_out(model, config, spec, chosen, data)
        yield _figures(name, shape_name, device, spec, geometry, events)


def _carry_out(model: Any, config: Any, spec: TrainSpec, chosen: Execution, data: list[Any]) -> list[Event]:
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as scratch:
        config.save_pretrained(Path(scratch) / "base")
        start = runs.start(Path(scratch), Path(scratch) / "base", spec, data)
        last = run.carry_out(start, model, chosen, emit=events.append, stop_request=lambda: None)
    assert isinstance(last, Finished)
    return events


def _figures(
    name: str, shape_name: str, device: Device, spec: TrainSpec, geometry: Any, events: list[Event]
) -> dict[str, Any]:
    (started,) = (event for event in events if isinstance(event, Started))
    ended = [started.execution, *(event.execution for event in events if isinstance(event, Adjusted))][-1]
    steps = [event for event in events if isinstance(event, Step)]
    return {
        "system": "ours",
        "case": name,
        "shape": shape_name,
        "tokens_per_second": statistics.median(step.tokens / step.seconds for step in steps[1:]),
        "losses": [step.loss for step in steps],
        "peak_bytes": peak_bytes(device),
        "predicted_bytes": estimate(spec, geometry, ended).total if device == "cuda" else None,
        "settings": f"{ended.token_budget} tokens a pass, gradient checkpointing "
        + ("on" if ended.gradient_checkpointing else "off"),
    }


def reset_peak(device: Device) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: Device) -> int:
    """What tensors held at most since `reset_peak`; of the CPU's memory, what the process ever held."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else runs.status_bytes(os.getpid(), "VmHWM")
