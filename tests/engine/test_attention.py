"""Packed attention against a plain formula. Shapes: A query heads, K key heads, T tokens, E head size."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worker.contract.errors import TrainError
from worker.engine import softcap
from worker.engine.attention import packed_attention
from worker.engine.documents import documents_of

A, K, T, E = 4, 2, 20, 8
BOUNDS = (0, 1, 8, 20)


def module(**config: Any) -> Any:
    return SimpleNamespace(is_causal=True, layer_idx=0, config=SimpleNamespace(**config))


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, A, T, E, generator=generator),
        torch.randn(1, K, T, E, generator=generator),
        torch.randn(1, K, T, E, generator=generator),
    )


def formula(scaling: float, window: int, softcap: float | None = None) -> torch.Tensor:
    query_ATE, key_KTE, value_KTE = (given[0] for given in inputs())
    key_ATE, value_ATE = (given.repeat_interleave(A // K, dim=0) for given in (key_KTE, value_KTE))
    document_T = torch.bucketize(torch.arange(T), torch.tensor(BOUNDS), right=True)
    distance_TT = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    seen_TT = (document_T[:, None] == document_T[None, :]) & (distance_TT >= 0) & (distance_TT < window)
    scores_ATT = query_ATE @ key_ATE.transpose(1, 2) * scaling
    if softcap is not None:
        scores_ATT = softcap * torch.tanh(scores_ATT / softcap)
    return (scores_ATT.masked_fill(~seen_TT, -math.inf).softmax(-1) @ value_ATE).transpose(0, 1)[None]


@pytest.mark.parametrize("scaling", [None, 0.5])
@pytest.mark.parametrize("window", [None, 1, 3, 12, 100])
def test_equals_the_formula(scaling: float | None, window: int | None) -> None:
    documents = documents_of(BOUNDS, torch.device("cpu"))
    out_1TAE, _ = packed_attention(
        module(sliding_window=window), *inputs(), None, documents=documents, scaling=scaling, sliding_window=window
    )
    torch.testing.assert_close(out_1TAE, formula(scaling or E**-0.5, window or T), rtol=1e-5, atol=1e-6)
    assert documents.layers_served == {0}


@pytest.mark.parametrize("block", [1, 5, 512])
@pytest.mark.parametrize("window", [None, 1, 3, 12])
def test_softcapped_scores_equal_the_formula(monkeypatch: pytest.MonkeyPatch, block: int, window: int | None) -> None:
    monkeypatch.setattr(softcap, "_BLOCK_QUERIES", block)
    query, key, value = given = inputs()
    for tensor in given:
        tensor.requires_grad_()
    documents = documents_of(BOUNDS, torch.device("cpu"))
    out_1TAE, _ = packed_attention(
        module(), query, key, value, None, documents=documents, scaling=0.5, sliding_window=window, softcap=1.5
    )
    torch.testing.assert_close(out_1TAE, formula(0.5, window or T, 1.5), rtol=1e-5, atol=1e-6)
    out_1TAE.square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in given)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3, 9, 100])
def test_a_document_that_continues_another_is_computed_as_if_they_stood_alone(
    window: int | None, softcap: float | None
) -> None:
    """Bounds 0, 1, 8, 20: the third document continues the second; then it does so from the other end of the row."""
    query, key, value = inputs()
    options: dict[str, Any] = {"sliding_window": window, "softcap": softcap}
    whole, _ = packed_attention(
        module(sliding_window=window),
        query[:, :, 1:],
        key[:, :, 1:],
        value[:, :, 1:],
        None,
        documents=documents_of((0, T - 1), torch.device("cpu")),
        **options,
    )
    orders = [
        (list(range(T)), BOUNDS, (None, None, 1)),
        ([0, *range(8, 20), *range(1, 8)], (0, 1, 13, 20), (None, 2, None)),
    ]
    for order, bounds, prefixes in orders:
        out, _ = packed_attention(
            module(sliding_window=window),
            query[:, :, order],
            key[:, :, order],
            value[:, :, order],
            None,
            documents=documents_of(bounds, torch.device("cpu"), prefixes),
            **options,
        )
        torch.testing.assert_close(out[0, [order.index(t) for t in range(1, T)]], whole[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 1, 2, 4, 7, 12, 100])
def test_many_that_continue_one_are_computed_as_if_each_stood_alone_with_it(window: int | None) -> None:
    """Two prefixes of 5 and 3 tokens, three and one that continue them, a document by itself: outputs and gradients."""
    bounds, prefixes = (0, 5, 7, 8, 14, 15, 18, 20), (None, 0, 0, 0, None, None, 5)
    given = [tensor.double().requires_grad_() for tensor in inputs()]
    found, _ = packed_attention(
        module(sliding_window=window),
        given[0],
        given[1],
        given[2],
        None,
        documents=documents_of(bounds, torch.device("cpu"), prefixes),
        sliding_window=window,
    )
    expected = torch.zeros_like(found)
    for document, prefix in enumerate(prefixes):
        of_prefix = [] if prefix is None else range(bounds[prefix], bounds[prefix + 1])
        own = range(bounds[document], bounds[document + 1])
        query, key, value = (tensor[:, :, [*of_prefix, *own]] for tensor in given)
        alone, _ = packed_attention(
            module(sliding_window=window),
            query,
            key,
            value,
            None,
            documents=documents_of((0, len(of_prefix) + len(own)), torch.device("cpu")),
            sliding_window=window,
        )
        expected[:, own] = alone[:, len(of_prefix) :]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for loss in (torch.Tensor.sum, lambda out: out.sin().sum()):  # the first's gradient is one number, expanded
        for one, other in zip(
            torch.autograd.grad(loss(found), given, retain_graph=True),
            torch.autograd.grad(loss(expected), given, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_masks_are_made_once_for_all_layers() -> None:
    documents = documents_of(BOUNDS, torch.device("cpu"), (None, None, 1))
    assert documents.mask(12, 3, 4) is documents.mask(12, 3, 4)
    assert documents.mask(12, 3, 4).long().sum(dim=1).tolist() == [4] * 12
    assert documents.mask(2, 3, None).tolist() == [[True] * 4 + [False], [True] * 5]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"softcap": 50.0, "dropout": 0.1}, "softcap and dropout"),
        ({"s_aux": torch.zeros(A)}, "s_aux"),
        ({"something_new": True, "other": 1}, "other, something_new"),
        ({"documents": None}, "bounds of packed documents"),
        ({"documents": documents_of((0, 5), torch.device("cpu"))}, "one packed row"),
        ({"is_causal": False}, "not causal"),
    ],
)
def test_what_it_cannot_honour_is_refused(asked: dict[str, Any], words: str) -> None:
    arguments = {"documents": documents_of(BOUNDS, torch.device("cpu")), **asked}
    with pytest.raises(TrainError, match=words) as caught:
        packed_attention(module(), *inputs(), None, **arguments)
    assert caught.value.code == "unsupported_model"


def test_a_mask_is_refused() -> None:
    with pytest.raises(TrainError, match="without a mask"):
        packed_attention(module(), *inputs(), torch.ones(1, T), documents=documents_of(BOUNDS, torch.device("cpu")))


@pytest.mark.parametrize("config", [{"sliding_window": 4}, {"layer_types": ["sliding_attention"]}])
def test_a_window_that_stands_only_in_the_config_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(TrainError, match="sliding window"):
        packed_attention(module(**config), *inputs(), None, documents=documents_of(BOUNDS, torch.device("cpu")))


def test_arguments_that_change_nothing_are_accepted() -> None:
    documents = documents_of(BOUNDS, torch.device("cpu"))
    packed_attention(
        module(),
        *inputs(),
        None,
        documents=documents,
        position_ids=torch.arange(T)[None],
        use_cache=False,
        softcap=None,
    )
