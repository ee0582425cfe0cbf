"""LoRA beside a narrow base. Shapes: T tokens, I inputs, O outputs, R rank."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from transformers import PreTrainedModel

from tests.tiny import Family
from worker.contract.spec import LoraSettings
from worker.engine import adapters, lora_product
from worker.engine.lora_product import LoraProduct

T, I, O, R = 5, 6, 4, 2  # noqa: E741


@pytest.mark.parametrize("is_dropped", [False, True])
def test_the_gradients_are_those_of_the_formula(is_dropped: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, a_RI, b_OR = drawn(1, T, I), drawn(R, I), drawn(O, R)
    dropped = drawn(1, T, I) if is_dropped else None
    base = torch.nn.Linear(I, O, dtype=torch.float64).requires_grad_(False)

    def computed(*given: Any) -> Any:
        return lora_product._Sum.apply(*given, 0.5, base)

    seen = x if dropped is None else dropped
    torch.testing.assert_close(computed(x, dropped, a_RI, b_OR), base(x) + 0.5 * (seen @ a_RI.T @ b_OR.T))
    given: Any = (x, dropped, a_RI, b_OR)
    assert torch.autograd.gradcheck(computed, given)


def layers(adapter: Any) -> list[Any]:
    return [layer for layer in adapter.modules() if isinstance(layer, Linear)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_agrees_with_peft_to_the_rounding_of_bfloat16(
    load_base: Callable[[Family], PreTrainedModel], dropout: float
) -> None:
    model: Any = load_base("qwen2")  # its projections have biases
    model.to(torch.bfloat16)
    adapter = adapters.attach(model, LoraSettings(rank=4, alpha=8, dropout=dropout), seed=0)
    layer = layers(adapter.train())[0]
    assert LoraProduct in type(layer).__mro__
    generator = torch.Generator().manual_seed(1)
    weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    weights[1].data.normal_(0, 0.1, generator=generator)
    x = torch.randn(1, 7, layer.in_features, generator=generator).to(torch.bfloat16).requires_grad_()

    def run(forward: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(3)
        out = forward(x)
        assert out.dtype == torch.bfloat16
        return [out, *torch.autograd.grad(out.float().square().sum(), [x, *weights])]

    ours, theirs = run(layer.forward), run(lambda given: Linear.forward(layer, given))
    if dropout:  # which draws in the dtype that it is given
        assert not torch.equal(ours[0], layer.get_base_layer()(x))
        return
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert (one.float() - other.float()).norm() <= 0.01 * other.float().norm()


def test_it_keeps_nothing_wide_of_a_narrow_input() -> None:
    layer = torch.nn.Linear(64, 64, dtype=torch.bfloat16).requires_grad_(False)
    kept: list[torch.Tensor] = []
    x = torch.randn(1, 100, 64).to(torch.bfloat16).requires_grad_()
    weights = [torch.randn(2, 64).requires_grad_(), torch.randn(64, 2).requires_grad_()]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        lora_product._Sum.apply(x, None, *weights, 1.0, layer)
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in kept if tensor is not x) == 100 * 2 + 2 * (2 * 64)


@pytest.mark.parametrize("dora", [False, True])
def test_what_it_is_not_for_is_left_to_peft(load_base: Callable[[Family], PreTrainedModel], dora: bool) -> None:
    adapter = adapters.attach(load_base("llama"), LoraSettings(rank=4, dora=dora), seed=0)
    assert {type(layer) for layer in layers(adapter)} == {Linear if dora else LoraProduct}
    layer = layers(adapter)[0]
    x = torch.randn(1, 3, layer.in_features)
    assert torch.equal(layer(x), Linear.forward(layer, x))
    with adapter.disable_adapter():
        narrow = x.to(torch.bfloat16)
        layer.base_layer.to(torch.bfloat16)
        assert torch.equal(layer(narrow), layer.get_base_layer()(narrow))
