"""Packed causal attention: the documents of one row, each attending only to itself and to its prefix, if it has one.

A prefix is another document of the row that several continue, such as a prompt with two answers: it is
computed once, and each continuation attends to it and to itself, as if the two stood alone in a row.
Positions are the caller's affair: those of a continuation go on from its prefix.

Registered with transformers under the name PACKED. The bounds of the documents travel as an
explicit keyword argument, `documents`, from the backbone's forward through every layer. No mask is
ever built or accepted: an all-ones mask on a packed row would join the documents without a word.

Shapes: B rows (always 1), A query heads, K key/value heads, T tokens, E head size, D documents,
L tokens of one document, S keys that one document or all of them see.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from transformers import AttentionInterface

from worker.contract.errors import TrainError
from worker.engine import flash
from worker.engine.documents import Documents
from worker.engine.prefix_attention import prefix_attention
from worker.engine.softcap import softcapped_attention

PACKED = "hone_packed"

# What layers hand on that does not change the attention of a packed training row.
_HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states", "return_dict"}


def register() -> None:
    """Make PACKED known to transformers. Models then ask for no mask, as none is registered for it."""
    AttentionInterface.register(PACKED, packed_attention)


def packed_attention(
    module: torch.nn.Module,
    query_BATE: torch.Tensor,
    key_BKTE: torch.Tensor,
    value_BKTE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    documents: Documents | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one packed row, [1, T, A, E]. TrainError for anything it could not honour."""
    asked = sorted(name for name, value in others.items() if value is not None and name not in _HARMLESS)
    if asked:
        raise _unsupported(f"its attention uses {', '.join(asked)}")
    if documents is None:
        raise _unsupported("its layers do not hand on the bounds of packed documents")
    if attention_mask is not None or query_BATE.shape[0] != 1 or query_BATE.shape[2] != documents.bounds[-1]:
        raise _unsupported("its attention is not over one packed row without a mask")
    if is_causal is False or not getattr(module, "is_causal", True):
        raise _unsupported("its attention is not causal")
    _check_window(module, sliding_window)
    documents.layers_served.add(int(getattr(module, "layer_idx", -1)))
    if softcap is not None:
        return _softcapped(query_BATE, key_BKTE, value_BKTE, documents, scaling, sliding_window, softcap, dropout), None
    kernel = flash.kernel_for(query_BATE, value_BKTE) if dropout == 0 else None
    if kernel is not None:
        return _flash(kernel, query_BATE, key_BKTE, value_BKTE, documents, scaling, sliding_window), None
    if _is_of_prefixes(query_BATE, documents, sliding_window) and dropout == 0:
        return prefix_attention(query_BATE, key_BKTE, value_BKTE, documents, scaling).transpose(1, 2), None
    return _each_document(query_BATE, key_BKTE, value_BKTE, documents, scaling, sliding_window, dropout), None


def _unsupported(why: str) -> TrainError:
    return TrainError("unsupported_model", f"This base model cannot be trained here: {why}.", param="model")


def _check_window(module: torch.nn.Module, sliding_window: int | None) -> None:
    # Some models put the window only into the mask, which is never built here.
    config = getattr(module, "config", None)
    layer_types = getattr(config, "layer_types", None)
    layer = getattr(module, "layer_idx", None)
    if layer_types is not None and layer is not None:
        windowed = layer_types[layer] == "sliding_attention"
    else:
        windowed = getattr(config, "sliding_window", None) is not None
    if windowed and sliding_window is None:
        raise _unsupported("a layer has a sliding window that it does not state")


def _is_of_prefixes(query_BATE: torch.Tensor, documents: Documents, sliding_window: int | None) -> bool:
    """Whether documents continue others, on the CPU, and no window ends before the first token that one sees."""
    reaches_all = sliding_window is None or documents.longest_seen <= sliding_window
    return documents.shared is not None and query_BATE.device.type == "cpu" and reaches_all


def _softcapped(
    query_BATE: torch.Tensor,
    key_BKTE: torch.Tensor,
    value_BKTE: torch.Tensor,
    documents: Documents,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float,
    dropout: float,
) -> torch.Tensor:
    if dropout != 0:
        raise _unsupported("its attention uses both softcap and dropout")
    outs = [
        softcapped_attention(
            query_BALE[0],
            key_BKSE[0],
            value_BKSE[0],
            scaling=query_BATE.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=softcap,
            sliding_window=sliding_window,
        ).transpose(0, 1)
        for query_BALE, key_BKSE, value_BKSE in zip(
            query_BATE.split(documents.lengths, dim=2),
            _seen(key_BKTE, documents, sliding_window),
            _seen(value_BKTE, documents, sliding_window),
            strict=True,
        )
    ]
    return torch.cat(outs).unsqueeze(0)


def _flash(
    kernel: flash.Kernel,
    query_BATE: torch.Tensor,
    key_BKTE: torch.Tensor,
    value_BKTE: torch.Tensor,
    documents: Documents,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    key_SKE, value_SKE = key_BKTE[0].transpose(0, 1), value_BKTE[0].transpose(0, 1)
    if documents.shared is not None:
        key_SKE, value_SKE = (_gathered(given, documents.shared.keys_S) for given in (key_SKE, value_SKE))
    keys_seen = documents.shared or documents
    return kernel(
        query_BATE[0].transpose(0, 1),
        key_SKE,
        value_SKE,
        documents.offsets_D1,
        keys_seen.offsets_D1,
        documents.longest,
        keys_seen.longest,
        scale=scaling,
        window=sliding_window,
    ).unsqueeze(0)


def _gathered(given_TKE: torch.Tensor, keys_S: torch.Tensor) -> torch.Tensor:
    # By way of float32: the gradients of a prefix are sums over all that continue it.
    return given_TKE.float().index_select(0, keys_S).to(given_TKE.dtype)


def _each_document(
    query_BATE: torch.Tensor,
    key_BKTE: torch.Tensor,
    value_BKTE: torch.Tensor,
    documents: Documents,
    scaling: float | None,
    sliding_window: int | None,
    dropout: float,
) -> torch.Tensor:
    outs = []
    for query_BALE, key_BKSE, value_BKSE in zip(
        query_BATE.split(documents.lengths, dim=2),
        _seen(key_BKTE, documents, sliding_window),
        _seen(value_BKTE, documents, sliding_window),
        strict=True,
    ):
        length, keys = query_BALE.shape[2], key_BKSE.shape[2]
        is_plain = keys == length and (sliding_window is None or length <= sliding_window)
        out_BALE = F.scaled_dot_product_attention(
            query_BALE,
            key_BKSE,
            value_BKSE,
            attn_mask=None if is_plain else documents.mask(length, keys - length, sliding_window),
            dropout_p=dropout,
            is_causal=is_plain,
            scale=scaling,
            enable_gqa=query_BATE.shape[1] != key_BKTE.shape[1],
        )
        outs.append(out_BALE.transpose(1, 2))
    return torch.cat(outs, dim=1)


def _seen(given_BKTE: torch.Tensor, documents: Documents, sliding_window: int | None) -> list[torch.Tensor]:
    """Of each document the keys or values that it sees, [B, K, S, E]: those of its prefix within reach, then its own.

    Split, not sliced: the gradients of all slices would each be as long as the row.
    """
    own = list(given_BKTE.split(documents.lengths, dim=2))
    if documents.shared is None:
        return own
    of = dict(zip(pairwise(documents.bounds), own, strict=True))
    return [
        torch.cat([_within_reach(of[prefix], sliding_window), own_BKLE], dim=2) if prefix in of else own_BKLE
        for prefix, own_BKLE in zip(documents.shared.spans, own, strict=True)
    ]


def _within_reach(prefix_BKPE: torch.Tensor, sliding_window: int | None) -> torch.Tensor:
    """The end of a prefix that the next token after it sees."""
    return (
        prefix_BKPE
        if sliding_window is None
        else prefix_BKPE[:, :, max(0, prefix_BKPE.shape[2] - sliding_window + 1) :]
    )
