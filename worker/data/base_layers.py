"""The linear layers of a base model, as far as the headers of its weights tell of them."""

import re
from pathlib import Path

from worker.data import tensor_headers

# Matrices that are looked up or that end the model: LoRA leaves them alone.
_NOT_LINEAR = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|lm_head|score)\.weight$")


def linear_layers(directory: Path) -> dict[str, tuple[int, int]]:
    """Numbers of outputs and inputs by module path, such as model.layers.0.self_attn.q_proj."""
    layers: dict[str, tuple[int, int]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor in tensor_headers.read(path).items():
            if len(tensor.shape) == 2 and name.endswith(".weight") and not _NOT_LINEAR.search(name):
                outputs, inputs = tensor.shape
                layers[name.removesuffix(".weight")] = (outputs, inputs)
    return layers
