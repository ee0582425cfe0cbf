"""Attention on the CPU of documents that continue a prefix: exact, without a mask, and each key is kept once.

A query sees its own document and its prefix. Torch's flash kernel computes each part by itself and says how much
weight it got, as the logarithm of its sum of exponentials; with these the parts are put together, softmax being a
share of a sum. In the backward pass the kernel computes each part's gradients from the output and the sum that it
is given: those of the whole make them the gradients of the whole (as in ring attention, arXiv:2310.01889). All
continuations of a prefix meet it in one product, and its gradients are summed inside of the kernel.

The plain way, masked attention over prefix and document put side by side, keeps a copy of the prefix's keys and
values for each document in each layer: with short documents more than all other activations.

Shapes: B rows (always 1), A query heads, K key/value heads, T tokens, E head size.
"""

from itertools import pairwise
from typing import Any

import torch

from worker.engine.documents import Documents
from worker.engine.losses import wide

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def prefix_attention(
    query_BATE: torch.Tensor,
    key_BKTE: torch.Tensor,
    value_BKTE: torch.Tensor,
    documents: Documents,
    scaling: float | None,
) -> torch.Tensor:
    """Causal attention of documents, each to itself and to its prefix, [B, A, T, E]. The tensors are on the CPU."""
    return _PrefixAttention.apply(query_BATE, key_BKTE, value_BKTE, documents, scaling)


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BATE: torch.Tensor,
        key_BKTE: torch.Tensor,
        value_BKTE: torch.Tensor,
        documents: Documents,
        scaling: float | None,
    ) -> torch.Tensor:
        assert documents.shared is not None
        rows, heads, tokens, size = query_BATE.shape
        out_BATE = query_BATE.new_empty(rows, tokens, heads, size).transpose(1, 2)  # as the next layer wants it
        log_sum_BAT = torch.empty(query_BATE.shape[:3], dtype=wide(query_BATE[:0]).dtype)
        for own in _slices(pairwise(documents.bounds)):
            given = (query_BATE[:, :, own], key_BKTE[:, :, own], value_BKTE[:, :, own])
            out_BATE[:, :, own], log_sum_BAT[:, :, own] = _forward(*given, is_causal=True, scale=scaling)
        for prefix, members in map(_slices, documents.shared.runs):
            given = (query_BATE[:, :, members], key_BKTE[:, :, prefix], value_BKTE[:, :, prefix])
            of_prefix, log_sum_of_prefix = _forward(*given, is_causal=False, scale=scaling)
            own_out, own_log_sum = wide(out_BATE[:, :, members]), log_sum_BAT[:, :, members]
            share = torch.sigmoid(log_sum_of_prefix - own_log_sum).unsqueeze(-1)
            out_BATE[:, :, members] = own_out.lerp(wide(of_prefix), share)
            log_sum_BAT[:, :, members] = torch.logaddexp(own_log_sum, log_sum_of_prefix)
        ctx.save_for_backward(query_BATE, key_BKTE, value_BKTE, out_BATE, log_sum_BAT)
        ctx.documents, ctx.scaling = documents, scaling
        return out_BATE

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient_BATE,) = gradients
        query, key, value, out, log_sum = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

        def part(queries: slice, keys: slice, is_causal: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return _backward(
                gradient_BATE[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                out[:, :, queries],
                log_sum[:, :, queries],
                0.0,
                is_causal,
                scale=ctx.scaling,
            )

        for own in _slices(pairwise(ctx.documents.bounds)):
            of_query[:, :, own], of_key[:, :, own], of_value[:, :, own] = part(own, own, True)
        for prefix, members in map(_slices, ctx.documents.shared.runs):
            more_of_query, more_of_key, more_of_value = part(members, prefix, False)
            of_query[:, :, members] += more_of_query
            of_key[:, :, prefix] += more_of_key
            of_value[:, :, prefix] += more_of_value
        return of_query, of_key, of_value, None, None


def _slices(spans: Any) -> list[slice]:
    return [slice(*span) for span in spans]
