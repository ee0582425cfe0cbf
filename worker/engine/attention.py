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

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from transformers import AttentionInterface

from worker.contract.errors import TrainError
from worker.engine import flash
from worker.engine.softcap import softcapped_attention
from worker.engine.transfer import onto

PACKED = "hone_packed"

# What layers hand on that does not change the attention of a packed training row.
_HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states", "return_dict"}


@dataclass(frozen=True)
class SharedPrefixes:
    """Of each document the tokens before it that it sees besides its own, start and end; equal where it has none.

    `keys_S` are the keys that the documents see, one document after the other, each prefix first.
    """

    spans: tuple[tuple[int, int], ...]  # D
    keys_S: torch.Tensor  # int64, on the device
    offsets_D1: torch.Tensor  # int32, on the device: where each document's part of `keys_S` begins
    longest: int


@dataclass(frozen=True)
class Documents:
    """Where the documents of one packed row begin and end, and which of them others continue.

    `layers_served` collects the layers that really used these bounds: a layer that mixes tokens in
    another way (a convolution, a recurrence, its own attention) is missing from it.
    """

    bounds: tuple[int, ...]  # D + 1 offsets, from 0 to T
    offsets_D1: torch.Tensor  # the same, int32, on the device
    longest: int
    shared: SharedPrefixes | None = None  # None where every document stands alone
    layers_served: set[int] = field(default_factory=set)


def documents_of(
    bounds: tuple[int, ...], device: torch.device, prefixes: Sequence[int | None] | None = None
) -> Documents:
    """`prefixes` names for each document the one that it continues, which continues none itself."""
    lengths = [end - start for start, end in pairwise(bounds)]
    shared = None if prefixes is None else _shared_prefixes(bounds, prefixes, device)
    return Documents(bounds, onto(device, torch.tensor(bounds, dtype=torch.int32)), max(lengths), shared)


def _shared_prefixes(bounds: tuple[int, ...], prefixes: Sequence[int | None], device: torch.device) -> SharedPrefixes:
    assert len(prefixes) == len(bounds) - 1
    spans = tuple((0, 0) if prefix is None else (bounds[prefix], bounds[prefix + 1]) for prefix in prefixes)
    keys: list[int] = []
    offsets = [0]
    for span, own in zip(spans, pairwise(bounds), strict=True):
        keys += [*range(*span), *range(*own)]
        offsets.append(len(keys))
    return SharedPrefixes(
        spans=spans,
        keys_S=onto(device, torch.tensor(keys)),
        offsets_D1=onto(device, torch.tensor(offsets, dtype=torch.int32)),
        longest=max(end - start for start, end in pairwise(offsets)),
    )


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
            query_BATE[0, :, start:end],
            _with_prefix(key_BKTE, prefix, start, end)[0],
            _with_prefix(value_BKTE, prefix, start, end)[0],
            scaling=query_BATE.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=softcap,
            sliding_window=sliding_window,
        )
        for prefix, (start, end) in zip(_prefix_spans(documents), pairwise(documents.bounds), strict=True)
    ]
    return torch.cat(outs, dim=1).transpose(0, 1).unsqueeze(0)


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
        key_SKE, value_SKE = (given.index_select(0, documents.shared.keys_S) for given in (key_SKE, value_SKE))
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
    for (first, last), (start, end) in zip(_prefix_spans(documents), pairwise(documents.bounds), strict=True):
        prefix = last - first
        mask_LS = None
        if prefix > 0 or (sliding_window is not None and end - start > sliding_window):
            ones_LS = torch.ones(end - start, prefix + end - start, dtype=torch.bool, device=query_BATE.device)
            mask_LS = ones_LS.tril(prefix)
            if sliding_window is not None:
                mask_LS &= ones_LS.triu(prefix + 1 - sliding_window)
        outs.append(
            F.scaled_dot_product_attention(
                query_BATE[:, :, start:end],
                _with_prefix(key_BKTE, (first, last), start, end),
                _with_prefix(value_BKTE, (first, last), start, end),
                attn_mask=mask_LS,
                dropout_p=dropout,
                is_causal=mask_LS is None,
                scale=scaling,
                enable_gqa=query_BATE.shape[1] != key_BKTE.shape[1],
            )
        )
    return torch.cat(outs, dim=2).transpose(1, 2)


def _prefix_spans(documents: Documents) -> tuple[tuple[int, int], ...]:
    return documents.shared.spans if documents.shared is not None else ((0, 0),) * (len(documents.bounds) - 1)


def _with_prefix(given_BKTE: torch.Tensor, prefix: tuple[int, int], start: int, end: int) -> torch.Tensor:
    """The keys or values that a document sees: its prefix's, then its own, [B, K, S, E]."""
    own_BKLE = given_BKTE[:, :, start:end]
    return torch.cat([given_BKTE[:, :, slice(*prefix)], own_BKLE], dim=2) if prefix[1] > prefix[0] else own_BKLE
