"""Shapes: T positions, H hidden, V vocabulary, N trained positions."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from worker.engine.log_probs import linear_log_probs
from worker.engine.losses import LogitShape, linear_cross_entropy

T, H, V = 40, 16, 100


def tensors(bias: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(T, H, generator=generator)
    head_VH = torch.randn(V, H, generator=generator)
    bias_V = torch.randn(V, generator=generator) if bias else None
    targets_T = torch.randint(V, (T,), generator=generator)
    weights_T = torch.tensor([0.0, 1.0, 0.25, 1.0, 0.0]).repeat(T // 5)
    return hidden_TH, head_VH, bias_V, targets_T, weights_T


@pytest.mark.parametrize("chunk_rows", [1, 7, 1024, None])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_cross_entropy_over_full_logits(chunk_rows: int | None, bias: bool) -> None:
    hidden_TH, head_VH, bias_V, targets_T, weights_T = tensors(bias)
    reference_TH = hidden_TH.clone().requires_grad_()
    logits_TV = F.linear(reference_TH, head_VH, bias_V)
    expected = (F.cross_entropy(logits_TV, targets_T, reduction="none") * weights_T).sum()
    (expected * 3).backward()
    sources_N = weights_T.nonzero().squeeze(1)
    hidden_TH.requires_grad_()
    loss, correct = linear_cross_entropy(
        hidden_TH, head_VH, bias_V, sources_N, targets_T[sources_N], weights_T[sources_N], chunk_rows=chunk_rows
    )
    (loss * 3).backward()
    assert hidden_TH.grad is not None
    assert reference_TH.grad is not None
    torch.testing.assert_close(loss.float(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(hidden_TH.grad, reference_TH.grad, rtol=1e-5, atol=1e-5)
    assert correct.item() == ((logits_TV.argmax(1) == targets_T) * weights_T).sum().item()


@pytest.mark.parametrize("shape", [LogitShape(scale=0.25), LogitShape(softcap=2.0), LogitShape(scale=3.0, softcap=5.0)])
def test_scaled_and_capped_logits_equal_autograd(shape: LogitShape) -> None:
    hidden_TH, head_VH, _, targets_T, weights_T = tensors()
    reference_TH = hidden_TH.double().requires_grad_()
    logits_TV = shape.scale * F.linear(reference_TH, head_VH.double())
    if shape.softcap is not None:
        logits_TV = shape.softcap * torch.tanh(logits_TV / shape.softcap)
    expected = (F.cross_entropy(logits_TV, targets_T, reduction="none") * weights_T).sum()
    expected.backward()
    sources_N = weights_T.nonzero().squeeze(1)
    wide_TH = hidden_TH.double().requires_grad_()
    loss, _ = linear_cross_entropy(
        wide_TH, head_VH.double(), None, sources_N, targets_T[sources_N], weights_T[sources_N], shape=shape
    )
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(wide_TH.grad, reference_TH.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk_rows", [1, 7, None])
@pytest.mark.parametrize("shape", [LogitShape(), LogitShape(scale=0.5, softcap=3.0)])
def test_log_probs_equal_those_of_full_logits(chunk_rows: int | None, shape: LogitShape) -> None:
    """With a gradient for each position, as a loss over sums of them has it."""
    hidden_TH, head_VH, bias_V, targets_T, weights_T = tensors(bias=True)
    coefficients_T = weights_T - 0.3
    expected_TH = hidden_TH.clone().requires_grad_()
    logits_TV = F.linear(expected_TH, head_VH, bias_V) * shape.scale
    if shape.softcap is not None:
        logits_TV = shape.softcap * torch.tanh(logits_TV / shape.softcap)
    expected_T = logits_TV.log_softmax(1).gather(1, targets_T[:, None]).squeeze(1)
    (expected_T * coefficients_T).sum().backward()
    hidden_TH.requires_grad_()
    found_T = linear_log_probs(hidden_TH, head_VH, bias_V, targets_T, shape=shape, chunk_rows=chunk_rows)
    (found_T * coefficients_T).sum().backward()
    torch.testing.assert_close(found_T, expected_T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden_TH.grad, expected_TH.grad, rtol=1e-5, atol=1e-5)


def test_untrained_positions_never_meet_the_head() -> None:
    hidden_TH, head_VH, _, targets_T, weights_T = tensors()
    sources_N = weights_T.nonzero().squeeze(1)
    arguments = (head_VH, None, sources_N, targets_T[sources_N], weights_T[sources_N])
    clean, _ = linear_cross_entropy(hidden_TH, *arguments)
    poisoned_TH = hidden_TH.clone()
    poisoned_TH[weights_T == 0] = float("nan")
    poisoned_TH.requires_grad_()
    loss, _ = linear_cross_entropy(poisoned_TH, *arguments)
    loss.backward()
    assert loss.item() == clean.item()
    assert poisoned_TH.grad is not None
    assert poisoned_TH.grad[weights_T == 0].abs().max() == 0
    assert poisoned_TH.grad.isfinite().all()


def test_numerical_gradient() -> None:
    hidden_TH, head_VH, _, targets_T, weights_T = tensors()
    sources_N = weights_T.nonzero().squeeze(1)[:6]
    hidden_TH.requires_grad_()
    loss, _ = linear_cross_entropy(hidden_TH, head_VH, None, sources_N, targets_T[sources_N], weights_T[sources_N])
    loss.backward()
    assert hidden_TH.grad is not None
    direction_TH = torch.randn(T, H, generator=torch.Generator().manual_seed(1))
    values = []
    for sign in (1, -1):
        moved_TH = hidden_TH.detach() + sign * 1e-2 * direction_TH
        value, _ = linear_cross_entropy(moved_TH, head_VH, None, sources_N, targets_T[sources_N], weights_T[sources_N])
        values.append(value.item())
    assert (values[0] - values[1]) / 2e-2 == pytest.approx((hidden_TH.grad * direction_TH).sum().item(), rel=1e-2)


def test_evaluation_keeps_no_gradient() -> None:
    hidden_TH, head_VH, _, targets_T, weights_T = tensors()
    hidden_TH.requires_grad_()
    with torch.no_grad():
        loss, _ = linear_cross_entropy(hidden_TH, head_VH, None, torch.arange(T), targets_T, weights_T)
    assert not loss.requires_grad
