"""A base whose matrices are held in 16 bits and multiplied in float32, for CPUs that only emulate 16-bit arithmetic.

Each matrix is widened, exactly, as it is multiplied (engine/frozen.py), so the results are those of the same weights
held in float32, at half the memory. Everything else, norms and biases, is small and becomes float32. The layers stay
transformers' own in all but their forward: names, tied weights and checksums are those of any other base.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from transformers import PreTrainedModel

from worker.engine import frozen
from worker.engine.nf4 import Nf4Linear


def hold(model: PreTrainedModel) -> None:
    """Have a model that was loaded in 16 bits compute in float32, where it lies.

    Layers in NF4 stay in it and unpack to float32. A matrix of a layer that is not understood becomes float32.
    """
    modules = list(model.modules())
    wide = {
        parameter
        for module in modules
        for parameter in module.parameters(recurse=False)
        if parameter.ndim < 2 or not (_is_linear(module) or _is_lookup(module))
    }
    for parameter in wide:
        parameter.data = parameter.data.float()
    for module in modules:
        if isinstance(module, Nf4Linear):
            module.compute_in(torch.float32)
        elif _is_linear(module):
            module.__class__ = NarrowLinear
        elif _is_lookup(module):
            module.__class__ = NarrowEmbedding


class NarrowLinear(torch.nn.Linear):
    """A frozen linear layer that computes in its input's dtype. Made by `hold`, never constructed."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (its name in torch)
        return frozen.multiply(input, self)


class NarrowEmbedding(torch.nn.Embedding):
    """A frozen table whose rows are widened as they are looked up. Made by `hold`, never constructed."""

    # Gemma's factor; its own forward would round it to the table's dtype.
    scalar_embed_scale = 1.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (its name in torch)
        return F.embedding(input, self.weight).float() * self.scalar_embed_scale


def _is_linear(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Linear


def _is_lookup(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Embedding or (
        isinstance(module, torch.nn.Embedding) and hasattr(module, "scalar_embed_scale")
    )
