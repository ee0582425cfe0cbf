"""The test that a flash attention kernel must pass before it is used, and how kernels are called.

No kernel of theirs runs on a CPU: here torch's attention, document by document, stands at their place.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

from worker.engine import flash

CPU = torch.device("cpu")


def varlen(bottom_right: bool = True, off_by: int = 0) -> Any:
    """A function with the arguments of torch.nn.attention.varlen.varlen_attn."""

    def computed(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_offsets: torch.Tensor,
        key_offsets: torch.Tensor,
        longest_queries: int,
        longest_keys: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        outs = []
        for (first, last), (start, end) in zip(
            pairwise(query_offsets.tolist()), pairwise(key_offsets.tolist()), strict=True
        ):
            assert last - first <= longest_queries
            assert end - start <= longest_keys
            more = end - start - (last - first) if bottom_right else 0
            distance = torch.arange(last - first)[:, None] + more - torch.arange(end - start)[None, :]
            left, right = window_size
            seen = distance >= -right
            if left >= 0:
                seen &= distance <= left + off_by
            parts = [query[first:last], key[start:end], value[start:end]]
            wide = [part.transpose(0, 1)[None] for part in parts]
            out = F.scaled_dot_product_attention(
                wide[0], wide[1], wide[2], attn_mask=seen, scale=scale, enable_gqa=True
            )
            outs.append(out[0].transpose(0, 1))
        return torch.cat(outs)

    return computed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_kernel_passes(dtype: torch.dtype) -> None:
    kernel = flash._kernel(varlen(), "scale")
    assert flash.largest_error(kernel, CPU, dtype, 16) < (1e-4 if dtype == torch.float32 else flash._TOLERANCE)


@pytest.mark.parametrize("wrong", [{"bottom_right": False}, {"off_by": 1}, {"off_by": -1}])
def test_a_wrong_kernel_does_not(wrong: dict[str, Any]) -> None:
    assert flash.largest_error(flash._kernel(varlen(**wrong), "scale"), CPU, torch.float32, 16) > flash._TOLERANCE


def test_torchs_kernel_takes_what_it_is_given() -> None:
    """Up to the operator itself, which a CPU does not have."""
    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
        flash.largest_error(flash._of_torch(), CPU, torch.bfloat16, 64)


def test_there_is_none_for_the_cpu() -> None:
    given = torch.zeros(1, 2, 3, 16, dtype=torch.bfloat16)
    assert flash.kernel_for(given, given) is None
