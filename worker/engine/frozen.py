"""Products with a frozen weight, which may be held in fewer bits than it is multiplied in.

A narrow weight is widened some rows at a time, for the product and again for its gradient: no wide copy of it ever
exists whole, nothing wide is kept for the backward pass, and what is widened is still in the cache when it is read.

Shapes: O outputs, I inputs of a weight; T positions; leading dimensions are flattened.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

# 4 MiB in float32: smaller blocks make the products slower, larger ones leave the cache.
_BLOCK_WEIGHTS = 1 << 20


def product(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b, [..., O], in the dtype of x and b."""
    if weight_OI.dtype == x.dtype:
        return F.linear(x, weight_OI, bias_O)
    x_TI = x.reshape(-1, x.shape[-1])
    out_TO = x.new_empty(len(x_TI), len(weight_OI))
    for rows in _blocks(weight_OI):
        wide_IO = weight_OI[rows].to(x.dtype).T
        if bias_O is None:
            torch.mm(x_TI, wide_IO, out=out_TO[:, rows])
        else:
            torch.addmm(bias_O[rows], x_TI, wide_IO, out=out_TO[:, rows])
    return out_TO.view(*x.shape[:-1], len(weight_OI))


def input_gradient(gradient: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """The output's gradient times W, [..., I], in the gradient's dtype."""
    if weight_OI.dtype == gradient.dtype:
        return gradient @ weight_OI
    gradient_TO = gradient.reshape(-1, len(weight_OI))
    first, *others = _blocks(weight_OI)
    out_TI = gradient_TO[:, first] @ weight_OI[first].to(gradient.dtype)
    for rows in others:
        out_TI.addmm_(gradient_TO[:, rows], weight_OI[rows].to(gradient.dtype))
    return out_TI.view(*gradient.shape[:-1], weight_OI.shape[1])


def multiply(x: torch.Tensor, layer: torch.nn.Linear) -> torch.Tensor:
    """What the layer computes; its weight is looked at once more in the backward pass instead of being kept."""
    return cast("torch.Tensor", _Multiply.apply(x, layer))


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: torch.nn.Linear) -> torch.Tensor:
        ctx.layer = layer
        return product(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return input_gradient(gradients[0], ctx.layer.weight), None


def _blocks(weight_OI: torch.Tensor) -> Iterator[slice]:
    rows = max(1, _BLOCK_WEIGHTS // weight_OI.shape[1])
    return (slice(start, start + rows) for start in range(0, len(weight_OI), rows))
