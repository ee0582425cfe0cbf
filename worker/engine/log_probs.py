"""Log-probabilities of given tokens, without ever building full logits.

Shapes: N trained positions, C of them at a time, H hidden, V vocabulary.
"""

from typing import Any

import torch

from worker.engine import frozen
from worker.engine.losses import PLAIN_LOGITS, LogitShape, chunk_rows_for, wide


def linear_log_probs(
    hidden_NH: torch.Tensor,
    head_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    *,
    shape: LogitShape = PLAIN_LOGITS,
    chunk_rows: int | None = None,
) -> torch.Tensor:
    """The log-probability (nats) of each target under the softmax of head @ hidden + bias in its final shape, [N].

    The head runs in chunks and must be frozen. What a position's log-probability will weigh in the loss is
    unknown while the logits are there, but its gradient is linear in that weight: the gradient for weight 1
    is kept, [N, H], and backward scales its rows. So nothing is computed twice. Softmax in float32 at least.
    """
    rows = chunk_rows or chunk_rows_for(head_VH)
    wants_gradient = torch.is_grad_enabled() and hidden_NH.requires_grad
    return _LinearLogProbs.apply(hidden_NH, head_VH, bias_V, targets_N, shape, rows, wants_gradient)


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        head_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        shape: LogitShape,
        chunk_rows: int,
        wants_gradient: bool,
    ) -> torch.Tensor:
        dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
        log_probs_N = torch.empty(len(targets_N), dtype=dtype, device=hidden_NH.device)
        gradient_NH = torch.empty_like(hidden_NH) if wants_gradient else None
        for start in range(0, len(targets_N), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            targets_C1 = targets_N[chunk, None]
            logits_CV = shape.apply_(wide(frozen.product(hidden_NH[chunk], head_VH, bias_V)))
            log_total_C1 = logits_CV.logsumexp(dim=1, keepdim=True)
            log_probs_N[chunk] = (logits_CV.gather(1, targets_C1) - log_total_C1).squeeze(1)
            if gradient_NH is not None:
                softcapped_CV = None if shape.softcap is None else logits_CV.clone()
                # d log-probability / d logits = one-hot - softmax, in the logits' own memory
                gradient_CV = logits_CV.sub_(log_total_C1).exp_().neg_()
                gradient_CV.scatter_add_(1, targets_C1, torch.ones_like(log_total_C1))
                shape.backward_(gradient_CV, softcapped_CV)
                gradient_NH[chunk] = frozen.input_gradient(gradient_CV.to(hidden_NH.dtype), head_VH)
        ctx.gradient_NH = gradient_NH
        return log_probs_N

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient_NH = ctx.gradient_NH * gradients[0][:, None].to(ctx.gradient_NH.dtype)
        return gradient_NH, *(None,) * 6
