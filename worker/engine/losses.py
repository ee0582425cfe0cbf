"""Pure loss functions. They return sums; the step divides once by its total weight.

Shapes: T tokens of a micro-batch, N trained positions, C of them at a time, H hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch

from worker.engine import frozen

# The most float32 logits held at a time (64 MiB): larger gains nothing on a CPU, its GEMMs are full long before.
# A GPU reads the head's weights anew for each chunk, so it wants more rows (256 MiB), and whole tiles of them.
_MAX_CHUNK_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 26}
_MAX_CHUNK_ROWS = 1024
_TILE_ROWS = 128


@dataclass(frozen=True)
class LogitShape:
    """What a family does to its head's output z: softcap * tanh(scale * z / softcap), or scale * z without a cap."""

    scale: float = 1.0
    softcap: float | None = None

    def apply_(self, logits: torch.Tensor) -> torch.Tensor:
        """The final logits, in the memory of the given ones."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def backward_(self, gradient: torch.Tensor, softcapped: torch.Tensor | None) -> torch.Tensor:
        """The gradient with respect to z, in the memory of the one with respect to the final logits.

        d tanh(x) / dx = 1 - tanh(x)^2, and softcap * tanh(x) is what `softcapped` holds.
        """
        if self.softcap is not None:
            assert softcapped is not None
            gradient.mul_(softcapped.div_(self.softcap).square_().neg_().add_(1))
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


PLAIN_LOGITS = LogitShape()


def linear_cross_entropy(
    hidden_TH: torch.Tensor,
    head_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    sources_N: torch.Tensor,
    targets_N: torch.Tensor,
    weights_N: torch.Tensor,
    *,
    shape: LogitShape = PLAIN_LOGITS,
    chunk_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sums of cross-entropy (nats) and of correct top-1 predictions, both float64 scalars.

    The head runs only on the rows `sources_N` of `hidden_TH` (each at most once), in chunks; full
    logits never exist. The head must be frozen: the gradient with respect to the hidden states is
    then linear in the incoming one, so it is computed in the forward pass while the logits are
    there, at two GEMMs in all. Softmax in float32 or wider. Only the loss has a gradient.
    """
    rows = chunk_rows or chunk_rows_for(head_VH)
    wants_gradient = torch.is_grad_enabled() and hidden_TH.requires_grad
    return _LinearCrossEntropy.apply(
        hidden_TH, head_VH, bias_V, sources_N, targets_N, weights_N, shape, rows, wants_gradient
    )


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def chunk_rows_for(head_VH: torch.Tensor) -> int:
    """How many positions meet the head at a time."""
    if head_VH.is_cuda:
        rows = _MAX_CHUNK_LOGITS["cuda"] // head_VH.shape[0]
        return max(_TILE_ROWS, min(_MAX_CHUNK_ROWS, rows // _TILE_ROWS * _TILE_ROWS))
    return max(16, min(_MAX_CHUNK_ROWS, _MAX_CHUNK_LOGITS["cpu"] // head_VH.shape[0]))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        head_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        sources_N: torch.Tensor,
        targets_N: torch.Tensor,
        weights_N: torch.Tensor,
        shape: LogitShape,
        chunk_rows: int,
        wants_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss = torch.zeros((), dtype=torch.float64, device=hidden_TH.device)
        correct = torch.zeros((), dtype=torch.float64, device=hidden_TH.device)
        gradient_TH = torch.zeros_like(hidden_TH) if wants_gradient else None
        for start in range(0, sources_N.shape[0], chunk_rows):
            sources_C = sources_N[start : start + chunk_rows]
            targets_C = targets_N[start : start + chunk_rows]
            weights_C = weights_N[start : start + chunk_rows]
            logits_CV = shape.apply_(wide(frozen.product(hidden_TH.index_select(0, sources_C), head_VH, bias_V)))
            log_total_C = logits_CV.logsumexp(dim=1)
            target_logits_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1)
            loss += (weights_C * (log_total_C - target_logits_C)).sum(dtype=torch.float64)
            correct += (weights_C * (logits_CV.argmax(dim=1) == targets_C)).sum(dtype=torch.float64)
            if gradient_TH is not None:
                softcapped_CV = None if shape.softcap is None else logits_CV.clone()
                # d loss / d logits = weight * (softmax - one-hot), in the logits' own memory
                gradient_CV = logits_CV.sub_(log_total_C[:, None]).exp_()
                gradient_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= 1
                shape.backward_(gradient_CV, softcapped_CV).mul_(weights_C[:, None])
                gradient_TH.index_copy_(0, sources_C, frozen.input_gradient(gradient_CV.to(hidden_TH.dtype), head_VH))
        ctx.gradient_TH = gradient_TH
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient_TH = ctx.gradient_TH * gradients[0].to(ctx.gradient_TH.dtype)
        return gradient_TH, *(None,) * 8
