"""The linear layers of a base model and the type of its weights, as far as their headers tell."""

import re
from pathlib import Path
from typing import Literal

from worker.data import tensor_headers

# Matrices that are looked up or that end the model: LoRA leaves them alone.
_NOT_LINEAR = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|lm_head|score)\.weight$")
_NARROW: dict[str, Literal["bfloat16", "float16"]] = {"BF16": "bfloat16", "F16": "float16"}


def linear_layers(directory: Path) -> dict[str, tuple[int, int]]:
    """Numbers of outputs and inputs by module path, such as model.layers.0.self_attn.q_proj."""
    layers: dict[str, tuple[int, int]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor in tensor_headers.read(path).items():
            if len(tensor.shape) == 2 and name.endswith(".weight") and not _NOT_LINEAR.search(name):
                outputs, inputs = tensor.shape
                layers[name.removesuffix(".weight")] = (outputs, inputs)
    return layers


def narrow_dtype(directory: Path) -> Literal["bfloat16", "float16"] | None:
    """The 16-bit type that all weights have, so that nothing is lost where they are held in it; None if they do not.

    None, too, for files that cannot be read: whoever loads them finds that out.
    """
    try:
        headers = [tensor_headers.read(path) for path in sorted(directory.glob("*.safetensors"))]
    except (OSError, tensor_headers.NotSafetensors):
        return None
    found = {tensor.dtype for tensors in headers for tensor in tensors.values() if "F" in tensor.dtype}
    return _NARROW.get(found.pop()) if len(found) == 1 else None
