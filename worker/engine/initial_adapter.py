"""Continue from an adapter that an earlier run, or another tool, has made."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from worker.contract.errors import TrainError
from worker.contract.events import Start
from worker.engine import adapters

# What else of a PEFT config would make the adapter compute something that ours does not.
_MUST_BE_OFF = (
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
)


def load(adapter: PeftModel, start: Start) -> None:
    """Begin where another run ended, if `start` asks for it.

    TrainError naming what differs if that adapter is not one that this run's settings would make. Its
    dropout may differ: that shapes only training.
    """
    if start.initial_adapter_directory is None:
        return
    directory = Path(start.initial_adapter_directory)
    try:
        found = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(directory / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise _unusable(start, "it is not a whole PEFT directory") from error
    problems = _config_differences(found, adapter) or _tensor_differences(tensors, adapter)
    if problems:
        raise _unusable(start, "; ".join(problems))
    adapters.restore(adapter, directory)


def _config_differences(found: Any, adapter: PeftModel) -> list[str]:
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        return ["it is not a LoRA adapter"]
    own = adapter.peft_config["default"].to_dict()
    differences = [
        f"its {name} is {found.get(name)}, not {own[name]}"
        for name in ("r", "lora_alpha", "use_rslora", "use_dora")
        if (found.get(name) or False) != own[name]
    ]
    return differences + [
        f"it has {name}" for name in _MUST_BE_OFF if found.get(name) not in (None, False, "none", [], {})
    ]


def _tensor_differences(tensors: dict[str, torch.Tensor], adapter: PeftModel) -> list[str]:
    own = adapters.tensors(adapter)
    if missing := sorted(own.keys() - tensors.keys()):
        return [f"it has no {missing[0]} ({len(missing)} tensors are missing)"]
    if unknown := sorted(tensors.keys() - own.keys()):
        return [f"it has {unknown[0]}, which this run does not train ({len(unknown)} such tensors)"]
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != own[name].shape:
            return [f"the shape of its {name} is {list(tensor.shape)}, not {list(own[name].shape)}"]
        if not torch.isfinite(tensor).all():
            return [f"its {name} has values that are infinite or not numbers"]
    return []


def _unusable(start: Start, why: str) -> TrainError:
    name = start.spec.initial_adapter or "the given model"
    return TrainError("initial_adapter_unusable", f"Training cannot continue from {name}: {why}.", param="model")
