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

# Settings that do not change what an adapter computes; its target modules show in its tensors.
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}
# Other ways to begin, PiSSA and the like, change the base's weights too.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")


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
    if found.get("init_lora_weights") not in _PLAIN_BEGINNINGS:
        return [f"its init_lora_weights is {found['init_lora_weights']}"]
    own = adapter.peft_config["default"].to_dict()
    names = sorted((found.keys() | own.keys()) - _HARMLESS)
    # Settings that one side does not know are off there.
    return [
        f"its {name} is {found.get(name)}, not {own.get(name)}"
        for name in names
        if (found.get(name) or None) != (own.get(name) or None)
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
