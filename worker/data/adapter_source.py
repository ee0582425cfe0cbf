"""LoRA adapters that were made elsewhere: whether one fits a base model, and what is kept of it.

A standard PEFT directory is read, and of it two files: adapter_config.json, from which settings are taken but
no name or path is ever followed, and adapter_model.safetensors. What the adapter trains is told by its tensors.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from worker.contract.spec import LoraSettings
from worker.data import tensor_headers
from worker.data.tensor_headers import NotSafetensors, TensorHeader

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 32 << 30
_PREFIX = "base_model.model."
_PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_BF16_EXPONENT = 0x7F80  # all of these bits are set in infinities and NaNs, and only there
_CHUNK_ELEMENTS = 1 << 22
# Ways to begin that leave the base model as it is; PiSSA, OLoRA and LoftQ write into its weights.
_HARMLESS_BEGINNINGS = (True, False, "gaussian", "eva")
_UNDERSTOOD = {
    *("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights"),
    # Told by the tensors, or without a part in what the adapter computes.
    *("target_modules", "exclude_modules", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("peft_version", "layers_pattern", "megatron_core", "loftq_config", "eva_config"),
    *("qalora_group_size", "ensure_weight_tying", "runtime_config"),
}
_NEUTRAL = {"bias": "none"}


class BadAdapter(Exception):
    """The directory cannot be imported; the message is for the person who named it."""


def import_directory(
    source: Path, target: Path, *, layers_of_base: Mapping[str, tuple[int, int]], base_id: str
) -> LoraSettings:
    """Copy an adapter into the new directory `target` and check it there. Raises BadAdapter.

    The copy's configuration is written anew: it names the base by its id and holds nothing but settings.
    """
    for name, most in ((CONFIG, MAX_CONFIG_BYTES), (WEIGHTS, MAX_WEIGHTS_BYTES)):
        path = source / name
        if not path.is_file():
            raise BadAdapter(f"{source} holds no {name}; only PEFT directories with safetensors are imported")
        if path.stat().st_size > most:
            raise BadAdapter(f"{path} has {path.stat().st_size} bytes; at most {most} are taken")
    config = _read_config(source / CONFIG)
    target.mkdir()
    shutil.copyfile(source / WEIGHTS, target / WEIGHTS)
    lora, names = _check(config, target / WEIGHTS, layers_of_base)
    _write_config(target / CONFIG, lora, names, base_id)
    return lora


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"{path} is not valid JSON") from error
    if not isinstance(config, dict):
        raise BadAdapter(f"{path} is not a JSON object")
    if config.get("peft_type") != "LORA":
        raise BadAdapter(
            f"{path} is for an adapter of type {str(config.get('peft_type'))[:64]!r}; only LORA is imported"
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise BadAdapter(f"{path} is for the task {str(config['task_type'])[:64]!r}; only CAUSAL_LM is imported")
    if config.get("init_lora_weights", True) not in _HARMLESS_BEGINNINGS:
        beginning = str(config["init_lora_weights"])[:64]
        raise BadAdapter(f"{path} has init_lora_weights {beginning!r}, which changes the base model's own weights")
    for name, value in config.items():
        if name not in _UNDERSTOOD and value and value != _NEUTRAL.get(name):
            raise BadAdapter(f"{path} has {name[:64]!r} set, which is not supported here")
    return config


def _check(
    config: dict[str, Any], weights: Path, base: Mapping[str, tuple[int, int]]
) -> tuple[LoraSettings, list[str]]:
    """The adapter's settings and the last parts of the names of its layers."""
    try:
        headers = tensor_headers.read(weights)
        with safe_open(weights, framework="numpy"):  # as strict as whoever loads the file later
            pass
    except (NotSafetensors, SafetensorError) as error:
        raise BadAdapter(f"{WEIGHTS} is not a whole safetensors file") from error
    layers = _layers(headers)
    names = {path.rpartition(".")[2] for path in layers}
    left_out = [path for path in base if path.rpartition(".")[2] in names and path not in layers]
    if left_out:
        raise BadAdapter(f"it leaves out {left_out[0]}; an adapter must hold all layers of the names that it trains")
    try:
        lora = LoraSettings(
            rank=config.get("r", 8),
            alpha=config.get("lora_alpha", 8),
            dropout=config.get("lora_dropout", 0.0),
            target_modules="all-linear" if set(layers) == set(base) else tuple(sorted(names)),
            rslora=config.get("use_rslora") or False,
            dora=config.get("use_dora") or False,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise BadAdapter(f"{CONFIG} has settings that are not supported: {fault['loc'][0]}: {fault['msg']}") from error
    for path, tensors in layers.items():
        _check_shapes(path, tensors, base.get(path), lora)
    with weights.open("rb") as file:
        for name, tensor in headers.items():
            if not _is_finite(file, tensor):
                raise BadAdapter(f"{name} holds values that are infinite or not a number")
    return lora, sorted(names)


def _layers(headers: dict[str, TensorHeader]) -> dict[str, dict[str, TensorHeader]]:
    """Tensors by the path of their layer in the base model, then by part."""
    layers: dict[str, dict[str, TensorHeader]] = {}
    for name, tensor in headers.items():
        part = next((part for part in _PARTS if name.endswith(f".{part}")), None)
        if part is None or not name.startswith(_PREFIX):
            raise BadAdapter(f"{name[:200]!r} is not a tensor of a LoRA adapter")
        if tensor.dtype not in _FLOATS:
            raise BadAdapter(f"{name} is of type {tensor.dtype[:16]}; expected one of {', '.join(_FLOATS)}")
        layers.setdefault(name[len(_PREFIX) : -len(part) - 1], {})[part] = tensor
    if not layers:
        raise BadAdapter("it holds no tensors")
    return layers


def _check_shapes(
    path: str, tensors: dict[str, TensorHeader], sizes: tuple[int, int] | None, lora: LoraSettings
) -> None:
    if sizes is None:
        raise BadAdapter(f"the base model has no linear layer {path[:200]!r}")
    outputs, inputs = sizes
    expected = dict(zip(_PARTS, ((lora.rank, inputs), (outputs, lora.rank), (outputs,)), strict=True))
    if not lora.dora:
        del expected["lora_magnitude_vector"]
    found = {part: tensor.shape for part, tensor in tensors.items()}
    if found != expected:
        shown = (", ".join(f"{part} {list(shape)}" for part, shape in sorted(d.items())) for d in (expected, found))
        raise BadAdapter(f"for {path}, rank {lora.rank} and this base need {next(shown)}; there is {next(shown)}")


def _is_finite(file: BinaryIO, tensor: TensorHeader) -> bool:
    kind = np.dtype(_FLOATS[tensor.dtype])
    file.seek(tensor.start)
    left = tensor.bytes // kind.itemsize
    while left > 0:
        values = np.frombuffer(file.read(min(left, _CHUNK_ELEMENTS) * kind.itemsize), kind)
        if tensor.dtype == "BF16":
            is_finite = not np.any((values & _BF16_EXPONENT) == _BF16_EXPONENT)
        else:
            is_finite = bool(np.isfinite(values).all())
        if not is_finite:
            return False
        left -= len(values)
    return True


def _write_config(path: Path, lora: LoraSettings, names: list[str], base_id: str) -> None:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_id,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": names,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
