"""The fused product of LoRA layers: PEFT's numbers, and PEFT's own code wherever more than plain LoRA is asked."""

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from transformers import PreTrainedModel

from tests.engine import reference
from tests.tiny import Family
from worker.contract.spec import LoraSettings
from worker.engine import adapters


def layer_of(adapter: PeftModel) -> Linear:
    return next(layer for layer in adapter.modules() if isinstance(layer, Linear))


def product(forward: Callable[[torch.Tensor], torch.Tensor], layer: Linear) -> list[torch.Tensor]:
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
    assert "forward" in vars(layer)
    expected = product(lambda x: Linear.forward(layer, x), layer)
    for value, other in zip(product(layer, layer), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lora", [LoraSettings(dropout=0.5), LoraSettings(dora=True)], ids=["dropout", "dora"])
def test_more_than_plain_lora_is_pefts_own(load_base: Callable[[Family], PreTrainedModel], lora: LoraSettings) -> None:
    layer = layer_of(reference.attach(load_base("llama"), lora)).train()
    x = torch.randn(1, 5, layer.in_features)
    torch.manual_seed(4)
    found = layer(x)
    torch.manual_seed(4)
    assert torch.equal(found, Linear.forward(layer, x))
    assert not torch.equal(found, layer.base_layer(x))


def test_it_is_gone_where_the_adapter_is_off_or_detached(load_base: Callable[[Family], PreTrainedModel]) -> None:
    model = load_base("llama")
    adapter = reference.attach(model)
    layer = layer_of(adapter)
    x = torch.randn(1, 5, layer.in_features)
    with adapter.disable_adapter():
        assert torch.equal(layer(x), layer.base_layer(x))
    adapters.detach(adapter)
    assert not any("forward" in vars(module) for module in model.modules() if isinstance(module, torch.nn.Linear))
