"""Flash attention over packed documents on CUDA: which kernel this machine has, and whether it is right.

A kernel is chosen once for each device, dtype and head size, and only after it has computed a small row,
forward and backward, as the plain formula does. Where none passes (cards before compute capability 8.0,
head sizes that flash attention does not know, builds without it), the caller computes document by document.

Shapes: A query heads, K key/value heads, T queries, S keys, E head size, D documents.
"""

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from inspect import signature
from itertools import pairwise
from typing import Any

import torch

log = logging.getLogger(__name__)

_OLDEST_CAPABILITY = (8, 0)
# bfloat16 keeps 8 bits; a wrong alignment or window is off by the size of the numbers themselves.
_TOLERANCE = 0.05


# Causal attention of packed documents: (query_TAE, key_SKE, value_SKE, query_offsets_D1, key_offsets_D1,
# longest_queries, longest_keys, *, scale, window) -> [T, A, E]. The offsets are int32 and on the device; the
# last query of each document meets its last key; `window` counts the token itself, None is no window.
Kernel = Callable[..., torch.Tensor]


def kernel_for(query: torch.Tensor, value: torch.Tensor) -> Kernel | None:
    """The kernel for these tensors, whose last dimension is a head; None where there is none."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16) or query.shape[-1] != value.shape[-1]:
        return None
    return _chosen(query.device, query.dtype, query.shape[-1])


@cache
def _chosen(device: torch.device, dtype: torch.dtype, head_size: int) -> Kernel | None:
    if torch.cuda.get_device_capability(device) >= _OLDEST_CAPABILITY:
        for name, made in _CANDIDATES.items():
            try:
                kernel = made()
                error = largest_error(kernel, device, dtype, head_size)
            except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as problem:
                if isinstance(problem, torch.OutOfMemoryError):
                    raise
                log.info("%s cannot be used: %s", name, str(problem).splitlines()[0])
                continue
            if error <= _TOLERANCE:
                log.info("attention by %s", name)
                return kernel
            log.warning("%s is not used: it is off by %.2g", name, error)
    log.warning("no flash attention for %s and heads of %d: each example is computed by itself", dtype, head_size)
    return None


def _of_torch() -> Kernel:
    varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn
    # Before torch 2.12 it takes fewer key heads unasked.
    grouped = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
    return _kernel(varlen_attn, "scale", **grouped)


def _of_package(name: str) -> Kernel:
    return _kernel(import_module(name).flash_attn_varlen_func, "softmax_scale", causal=True)


def _kernel(function: Callable[..., Any], scale_name: str, **fixed: bool) -> Kernel:
    def kernel(*tensors_and_lengths: Any, scale: float | None, window: int | None) -> torch.Tensor:
        # What a token sees to its left, besides itself, and to its right; -1 is all.
        sides = (-1 if window is None else window - 1, 0)
        out = function(*tensors_and_lengths, window_size=sides, **{scale_name: scale}, **fixed)
        return out[0] if isinstance(out, tuple) else out

    return kernel


# Fastest first: the package flash_attn_interface is flash attention 3, for Hopper alone; the others are its second.
_CANDIDATES: dict[str, Callable[[], Kernel]] = {
    "flash_attn_interface": lambda: _of_package("flash_attn_interface"),
    "torch.nn.attention.varlen": _of_torch,
    "flash_attn": lambda: _of_package("flash_attn"),
}


def largest_error(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int) -> float:
    """Of output and gradients, relative to the norm of the plain formula's, over full and windowed attention.

    The row has a document of one token, a longer one, and one with more keys than queries, as a prefix gives it.
    """
    generator = torch.Generator().manual_seed(0)  # on the CPU, and nobody else's
    query_offsets, key_offsets = (0, 1, 150, 190), (0, 1, 150, 323)
    shapes = [(query_offsets[-1], 4, head_size), *[(key_offsets[-1], 2, head_size)] * 2]
    given = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    weights_TAE = torch.randn(shapes[0], generator=generator).to(device, dtype)
    worst = 0.0
    with torch.enable_grad():
        for window in (None, 2, 70):
            own = [tensor.clone().requires_grad_() for tensor in given]
            offsets = [torch.tensor(o, dtype=torch.int32, device=device) for o in (query_offsets, key_offsets)]
            longest = [max(end - start for start, end in pairwise(o)) for o in (query_offsets, key_offsets)]
            out_TAE = kernel(*own, *offsets, *longest, scale=None, window=window)
            found = [out_TAE, *torch.autograd.grad(out_TAE, own, weights_TAE)]
            query_TAE, key_SKE, value_SKE = wide = [tensor.float().clone().requires_grad_() for tensor in given]
            out_TAE = _formula(query_TAE, key_SKE, value_SKE, query_offsets, key_offsets, window)
            wanted = [out_TAE, *torch.autograd.grad(out_TAE, wide, weights_TAE.float())]
            for one, other in zip(found, wanted, strict=True):
                error = (one.detach().float() - other.detach()).norm() / other.detach().norm().clamp_min(1e-3)
                worst = max(worst, error.nan_to_num(torch.inf).item())
    return worst


def _formula(
    query_TAE: torch.Tensor,
    key_SKE: torch.Tensor,
    value_SKE: torch.Tensor,
    query_offsets: tuple[int, ...],
    key_offsets: tuple[int, ...],
    window: int | None,
) -> torch.Tensor:
    groups = query_TAE.shape[1] // key_SKE.shape[1]
    outs = []
    for (first, last), (start, end) in zip(pairwise(query_offsets), pairwise(key_offsets), strict=True):
        key_SAE, value_SAE = (given[start:end].repeat_interleave(groups, 1) for given in (key_SKE, value_SKE))
        scores_ATS = torch.einsum("tae,sae->ats", query_TAE[first:last], key_SAE) * query_TAE.shape[-1] ** -0.5
        seen_TS = torch.ones(last - first, end - start, dtype=torch.bool, device=query_TAE.device)
        seen_TS = seen_TS.tril(end - start - (last - first))
        if window is not None:
            seen_TS = seen_TS.triu(end - start - (last - first) + 1 - window)
        shares_ATS = scores_ATS.masked_fill(~seen_TS, -torch.inf).softmax(-1)
        outs.append(torch.einsum("ats,sae->tae", shares_ATS, value_SAE))
    return torch.cat(outs)
