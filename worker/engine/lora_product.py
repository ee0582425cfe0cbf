"""A linear layer with plain LoRA as one step of autograd: the same sums as PEFT's, fewer passes over memory.

PEFT computes W x + s B A x as five operations, each of which writes a tensor as large as the output, forward
and backward. Here the low-rank product is added to the base layer's while it is written (Hu et al. 2021,
equation 3), and so are the two parts of the input's gradient.

Shapes: T tokens, I inputs, O outputs, R rank.
"""

from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear


def fuse(adapter: PeftModel) -> None:
    """Have every LoRA layer compute so wherever that is what PEFT would compute; elsewhere PEFT's own code does."""
    for layer in adapter.modules():
        if isinstance(layer, Linear):
            # On the instance: it goes with the layer, when the adapter is detached.
            layer.forward = _Forward(layer)


class _Forward:
    def __init__(self, layer: Linear) -> None:
        self._layer = layer

    def __call__(self, x: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        layer = self._layer
        name = _plain_adapter(layer)
        if more or named or name is None or x.dtype != layer.lora_A[name].weight.dtype:
            return type(layer).forward(layer, x, *more, **named)
        product = _LoraProduct.apply(
            x, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], layer.base_layer
        )
        return cast("torch.Tensor", product)


def _plain_adapter(layer: Linear) -> str | None:
    """The layer's one active adapter, if it is LoRA without anything else to it; None where PEFT must do it."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_B[name].bias is not None:
        return None
    draws = layer.training and not isinstance(layer.lora_dropout[name], torch.nn.Identity)
    return None if draws else name


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, scaling: float, base: torch.nn.Linear
    ) -> torch.Tensor:
        out = base(x)
        inner_TR = x.flatten(0, -2) @ a_RI.T
        out.view(-1, out.shape[-1]).addmm_(inner_TR, b_OR.T, alpha=scaling)
        ctx.save_for_backward(x, a_RI, b_OR, inner_TR)
        ctx.scaling, ctx.base = scaling, base
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a_RI, b_OR, inner_TR = ctx.saved_tensors
        gradient_TO = gradients[0].flatten(0, -2)
        inner_gradient_TR = (gradient_TO @ b_OR).mul_(ctx.scaling)
        gradient_OR = (gradient_TO.T @ inner_TR).mul_(ctx.scaling)
        gradient_RI = inner_gradient_TR.T @ x.flatten(0, -2)
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gradient_x = (gradient_TO @ ctx.base.weight).addmm_(inner_gradient_TR, a_RI).view_as(x)
        return gradient_x, gradient_RI, gradient_OR, None, None
