"""The reference: transformers' eager attention, one example at a time, full logits, full cross-entropy.

Shapes: L tokens of one example, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peft import PeftModel
from peft.tuners.lora import Linear
from transformers import PreTrainedModel

from worker.contract.spec import LoraSettings
from worker.data.token_file import TokenFile
from worker.engine import adapters, batches, sft
from worker.engine.lora_product import LoraProduct
from worker.engine.packing import pack
from worker.engine.sft import Sums

LORA = LoraSettings(rank=4, alpha=8)


def attach(model: PreTrainedModel, lora: LoraSettings = LORA) -> PeftModel:
    """An adapter that already does something: B is zero at first, and A would get no gradient."""
    adapter = adapters.attach(model, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapters.parameters(adapter).items():
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            if ".lora_B." in name:
                parameter.copy_(noise)
            elif "magnitude" in name:
                parameter.mul_(1 + noise)
    if model.config._attn_implementation == "eager":
        _compute_as_peft_does(adapter)
    return adapter


def _compute_as_peft_does(adapter: PeftModel) -> None:
    """The reference takes nothing from us: neither attention nor the product of LoRA layers."""
    ours: list[Any] = [layer for layer in adapter.modules() if isinstance(layer, LoraProduct)]
    for layer in ours:
        layer.__class__ = Linear


def gradients(adapter: PeftModel, total_weight: float) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in adapters.parameters(adapter).items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad / total_weight
        parameter.grad = None
    return found


def train(model: PreTrainedModel, data: TokenFile) -> Sums:
    """Each example in a batch of its own; shorter ones first, for dynamic NTK remembers the longest it has seen."""
    sums = Sums()
    for row in sorted(range(len(data)), key=lambda row: len(data.example(row)[0])):
        tokens, weights = data.example(row)
        tokens_L, weights_L = torch.from_numpy(tokens).long(), torch.from_numpy(weights)
        logits_LV = model(input_ids=tokens_L[None], use_cache=False).logits[0]
        losses = F.cross_entropy(logits_LV[:-1], tokens_L[1:], reduction="none")
        loss = (losses * weights_L[1:]).sum()
        loss.backward()
        correct = ((logits_LV[:-1].argmax(1) == tokens_L[1:]) * weights_L[1:]).sum()
        trained = int((weights_L > 0).sum())
        sums += Sums(loss.item(), correct.item(), weights_L.sum().item(), len(tokens_L), trained)
    return sums


def packed(model: PreTrainedModel, data: TokenFile, token_budget: int) -> Sums:
    """The same by our way."""
    sums = Sums()
    for rows in batches.micro_batches(data, list(range(len(data))), token_budget):
        sums += sft.train(model, pack(data, rows))
    return sums
