"""LoRA in its input's dtype: y = x W^T + b + s (x A^T) B^T as one step of autograd.

PEFT computes it as five operations, each of which writes a tensor as large as the output, forward and backward.
Here the low-rank product is added into the base's output in place, and so are the parts of the input's gradient.

Beside a bfloat16 base PEFT keeps adapters in float32, which their small updates need, and computes with them
in float32: a wide copy of each layer's input is kept for the backward pass, and several passes over wide
outputs cost more time on a GPU than the matrix products save. Here the float32 weights are rounded for the product,
as autocast would, and the input is kept once, as it is. Gradients arrive in the float32 weights.
Variants (DoRA) are computed by PEFT.

Shapes: T tokens, I inputs, O outputs, R rank; leading dimensions are flattened.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from peft import PeftModel
from peft.tuners.lora import Linear

from worker.engine import frozen


def use(adapter: PeftModel) -> None:
    """Have the adapter's layers compute so; they stay PEFT's layers in every other respect."""
    for layer in adapter.modules():
        if type(layer) is Linear and not layer.lora_variant:
            layer.__class__ = LoraProduct


class LoraProduct(Linear):
    """PEFT's LoRA layer with another forward. Made by `use`, never constructed."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        dropout = self.lora_dropout[name]
        # Where dropout draws, the adapter's input is another one than the base's.
        dropped = dropout(x) if self.training and isinstance(dropout, torch.nn.Dropout) else None
        a_RI, b_OR = (cast("torch.nn.Linear", given[name]).weight for given in (self.lora_A, self.lora_B))
        return cast("torch.Tensor", _Sum.apply(x, dropped, a_RI, b_OR, self.scaling[name], self.get_base_layer()))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
        base: torch.nn.Linear,
    ) -> torch.Tensor:
        seen = x if dropped is None else dropped
        narrow_a_RI, narrow_b_OR = a_RI.to(x.dtype), (b_OR * scaling).to(x.dtype)
        low_TR = F.linear(_flat(seen), narrow_a_RI)
        out = frozen.product(x, base.weight, base.bias)
        out.view(-1, out.shape[-1]).addmm_(low_TR, narrow_b_OR.T)
        ctx.save_for_backward(seen, low_TR, narrow_a_RI, narrow_b_OR)
        ctx.scaling, ctx.base, ctx.is_dropped, ctx.wide = scaling, base, dropped is not None, a_RI.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        seen, low_TR, a_RI, b_OR = ctx.saved_tensors
        for_x, for_dropped, for_a, for_b, *_ = ctx.needs_input_grad
        gradient_TO = _flat(gradients[0])
        low_gradient_TR = gradient_TO @ b_OR
        x_gradient_TI = frozen.input_gradient(gradient_TO, ctx.base.weight) if for_x else None
        dropped_gradient_TI = None
        if ctx.is_dropped:
            dropped_gradient_TI = low_gradient_TR @ a_RI if for_dropped else None
        elif x_gradient_TI is not None:
            x_gradient_TI.addmm_(low_gradient_TR, a_RI)
        return (
            None if x_gradient_TI is None else x_gradient_TI.view_as(seen),
            None if dropped_gradient_TI is None else dropped_gradient_TI.view_as(seen),
            (low_gradient_TR.T @ _flat(seen)).to(ctx.wide) if for_a else None,
            (gradient_TO.T @ low_TR).to(ctx.wide) * ctx.scaling if for_b else None,
            None,
            None,
        )


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
