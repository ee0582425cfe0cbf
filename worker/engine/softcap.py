"""Causal attention with softcapped scores, cap * tanh(score / cap) (Gemma 2, arXiv:2408.00118).

No fused kernel of torch takes a softcap without compiling, so this is the plain formula. It goes block
by block of queries and computes each block again in the backward pass: what is kept is linear in the
document's length, and what is held at a time is one block's scores.

Shapes: A query heads, K key/value heads, G = A / K, L tokens of a document, P of its prefix, Q queries of a block,
S keys that the block can see, E head size.
"""

import torch
from torch.utils.checkpoint import checkpoint

from worker.engine.losses import wide

_BLOCK_QUERIES = 512


def softcapped_attention(
    query_ALE: torch.Tensor,
    key_KPLE: torch.Tensor,
    value_KPLE: torch.Tensor,
    *,
    scaling: float,
    softcap: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attention of one document, [A, L, E], to P + L keys; the window counts the token itself."""
    length = query_ALE.shape[1]
    prefix = key_KPLE.shape[1] - length
    outs = []
    for first in range(0, length, _BLOCK_QUERIES):
        end = min(first + _BLOCK_QUERIES, length)
        oldest = 0 if sliding_window is None else max(0, prefix + first - sliding_window + 1)
        out_AQE = checkpoint(
            _block,
            query_ALE[:, first:end],
            key_KPLE[:, oldest : prefix + end],
            value_KPLE[:, oldest : prefix + end],
            scaling,
            softcap,
            sliding_window,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        assert isinstance(out_AQE, torch.Tensor)
        outs.append(out_AQE)
    return torch.cat(outs, dim=1)


def _block(
    query_AQE: torch.Tensor,
    key_KSE: torch.Tensor,
    value_KSE: torch.Tensor,
    scaling: float,
    softcap: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """The block's queries are the last Q of the S positions."""
    heads, queries, size = query_AQE.shape
    groups, keys, _ = key_KSE.shape
    query_KGQE = query_AQE.reshape(groups, heads // groups * queries, size)
    scores_KGQS = wide(query_KGQE @ key_KSE.transpose(1, 2)) * (scaling / softcap)
    scores_AQS = scores_KGQS.tanh().mul(softcap).view(heads, queries, keys)
    seen_QS = torch.ones(queries, keys, dtype=torch.bool, device=query_AQE.device).tril(keys - queries)
    if sliding_window is not None:
        seen_QS = seen_QS.triu(keys - queries + 1 - sliding_window)
    shares_AQS = scores_AQS.masked_fill(~seen_QS, -torch.inf).softmax(-1).to(value_KSE.dtype)
    out_KGQE = shares_AQS.view(groups, heads // groups * queries, keys) @ value_KSE
    return out_KGQE.view(heads, queries, size)
