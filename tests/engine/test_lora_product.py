"""LoRA layers beside a base of the adapter's own dtype: PEFT's numbers, dropout and all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from transformers import PreTrainedModel

from tests.engine import reference
from tests.tiny import Family
from worker.contract.spec import LoraSettings
from worker.engine.lora_product import LoraProduct


def layer_of(adapter: PeftModel) -> Any:
    return next(layer for layer in adapter.modules() if isinstance(layer, Linear))


def product(forward: Callable[[torch.Tensor], torch.Tensor], layer: Any) -> list[torch.Tensor]:
    """The output, and the gradients of input, A and B under a random weighing of the outputs."""
    generator = torch.Generator().manual_seed(3)
    weights = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(1, 5, layer.in_features, generator=generator, dtype=weights[0].dtype).requires_grad_()
    out = forward(x)
    gradient = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    return [out, *torch.autograd.grad(out, (x, *weights), gradient)]


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # qwen2's layers have biases
def test_it_gives_pefts_output_and_gradients(load_base: Callable[[Family], PreTrainedModel], family: Family) -> None:
    layer = layer_of(reference.attach(load_base(family), LoraSettings(rank=4, alpha=6))).double()
    assert type(layer) is LoraProduct
    expected = product(lambda x: Linear.forward(layer, x), layer)
    for value, other in zip(product(layer, layer), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-12)


def test_dropout_is_pefts_own(load_base: Callable[[Family], PreTrainedModel]) -> None:
    layer = layer_of(reference.attach(load_base("llama"), LoraSettings(rank=4, dropout=0.5))).train().double()

    def drawn(forward: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(4)
        return product(forward, layer)

    expected = drawn(lambda x: Linear.forward(layer, x))
    for value, other in zip(drawn(layer), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-12)
    assert not torch.equal(expected[0], product(layer, layer)[0])
