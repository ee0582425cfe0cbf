"""The peer of the GPU benchmark: TRL's SFTTrainer on the same weights and tokens, at the best that is installed.

Attention is flash_attention_2 where the package is installed, else SDPA; the optimizer is the fused AdamW, and no
gradient checkpointing is used where the step fits without. Where lengths are equal nothing is padded or masked;
where they differ TRL packs best-fit-decreasing, one row a pass.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from benchmarks import gpu_models, gpu_ours, gpu_shapes
from benchmarks.gpu_shapes import Shape
from worker.engine import memory
from worker.engine.execution import Device

NEEDS = ("trl", "datasets", "accelerate", "peft")
_MOST_TOKENS_A_PASS = 16_384


def missing() -> list[str]:
    return [name for name in NEEDS if find_spec(name) is None]


def measure(name: str, shape_name: str, device: Device, *, tiny: bool) -> dict[str, Any]:
    """TRL with as many rows a pass as fit, then with gradient checkpointing."""
    subject = gpu_models.SUBJECTS[name]
    shape = gpu_shapes.shapes(tiny=tiny)[shape_name]
    config = subject.config(tiny=tiny)
    tokens, steps = subject.amounts(tiny=tiny)
    data = gpu_shapes.examples(shape, tokens=tokens * steps, vocab_size=gpu_models.geometry_of(config).vocab)
    rows_a_step = max(1, tokens // shape.longest)
    for rows, checkpointing in _attempts(shape, rows_a_step):
        try:
            found = _train(name, config, device, shape, data, steps, rows, rows_a_step, checkpointing)
        except RuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
            print(f"TRL runs out of memory with {rows} rows a pass, checkpointing {checkpointing}", flush=True)
        else:
            return {"system": "TRL", "case": name, "shape": shape_name, **found}
        memory.free()  # here, where the error no longer holds what it met
    raise SystemExit("TRL fits in no way")


def _attempts(shape: Shape, rows_a_step: int) -> Iterator[tuple[int, bool]]:
    for checkpointing in (False, True):
        rows = 1 if shape.mean else max(1, min(rows_a_step, _MOST_TOKENS_A_PASS // shape.longest))
        while rows >= 1:
            yield rows, checkpointing
            rows //= 2


class _Clock(TrainerCallback):
    """The seconds of each optimizer step, from the end of the one before, and the model's memory at the end."""

    def __init__(self, device: Device) -> None:
        self._device: Device = device
        self._began = 0.0
        self.seconds: list[float] = []

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        gpu_ours.reset_peak(self._device)
        self._began = self._now()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        now = self._now()
        self.seconds.append(now - self._began)
        self._began = now

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


def _train(
    name: str,
    config: Any,
    device: Device,
    shape: Shape,
    data: list[Any],
    steps: int,
    rows: int,
    rows_a_step: int,
    checkpointing: bool,
) -> dict[str, Any]:
    # Imported late: who has no TRL can still import this.
    from peft import LoraConfig

    from tests.engine import trl_trainers

    attention = "flash_attention_2" if device == "cuda" and find_spec("flash_attn") else "sdpa"
    model = _model(name, config, device, attention)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl_trainers.sft_trainer(
            model,
            lora,
            {},
            data,
            Path(scratch),
            use_cpu=device == "cpu",
            bf16=True,
            max_steps=steps,
            max_length=shape.longest,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=max(1, rows_a_step // rows),
            activation_checkpointing=checkpointing,
            dataloader_pin_memory=device == "cuda",
            **({"packing": True, "packing_strategy": "bfd"} if shape.mean else {}),
        )
        clock = _Clock(device)
        trainer.add_callback(clock)
        losses = trl_trainers.losses_of_steps(trainer)
        dataset: Any = trainer.train_dataset
        lengths = [len(row["input_ids"]) for row in dataset]
    taken = rows * max(1, rows_a_step // rows)
    tokens = [sum(lengths[step * taken : (step + 1) * taken]) for step in range(steps)]
    speeds = [count / seconds for count, seconds in zip(tokens, clock.seconds, strict=True) if count]
    return {
        "tokens_per_second": statistics.median(speeds[1:] or speeds),
        "losses": losses,
        "peak_bytes": gpu_ours.peak_bytes(device),
        "predicted_bytes": None,
        "settings": f"{rows} rows of {shape.longest} a pass, {'packed' if shape.mean else 'not padded'}, {attention}, "
        f"gradient checkpointing {'on' if checkpointing else 'off'}, bf16",
    }


def _model(name: str, config: Any, device: Device, attention: str) -> PreTrainedModel:
    where = torch.device(device)
    if gpu_models.SUBJECTS[name].quantization is None:
        return gpu_models.build_plain(config, where, attention, lambda _layer: None)
    model: Any = gpu_models.build_plain(config, where, attention, _quantize_theirs)
    model.is_loaded_in_4bit = True  # by which PEFT and TRL know their own layers
    return model


def _quantize_theirs(layer: torch.nn.Module) -> None:
    """bitsandbytes' own layers, NF4 with double quantization, as transformers would load them."""
    nn: Any = import_module("bitsandbytes.nn")

    for parent in list(layer.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                with torch.device("meta"):
                    made = nn.Linear4bit(
                        child.in_features,
                        child.out_features,
                        bias=False,
                        compute_dtype=torch.bfloat16,
                        quant_type="nf4",
                    )
                weight = nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                made.weight = weight.to(child.weight.device)
                made.bias = child.bias
                setattr(parent, name, made)
