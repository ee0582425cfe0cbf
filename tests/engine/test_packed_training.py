"""Packed training against the reference: transformers' eager attention, one example at a time.

Shapes: T tokens of a micro-batch, L tokens of one example, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.engine.examples import load_examples, random_examples
from tests.tiny import Family
from worker.contract.spec import LoraSettings
from worker.data.token_file import TokenFile
from worker.engine import adapters, batches, sft
from worker.engine.packing import pack
from worker.engine.sft import Sums

LORA = LoraSettings(rank=4, alpha=8)


def attach(model: PreTrainedModel) -> PeftModel:
    """An adapter that already does something: B is zero at first, and A would get no gradient."""
    adapter = adapters.attach(model, LORA, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapters.parameters(adapter).items():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter


def gradients(adapter: PeftModel, total_weight: float) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in adapters.parameters(adapter).items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad / total_weight
        parameter.grad = None
    return found


def reference(model: PreTrainedModel, data: TokenFile) -> Sums:
    """Full logits, full cross-entropy, each example in a batch of its own."""
    sums = Sums()
    for row in range(len(data)):
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    return load_examples(tmp_path_factory.mktemp("data") / "data", random_examples(12, seed=4))


def test_any_packing_equals_the_reference(
    load_base: Callable[[Family], PreTrainedModel],
    base_directories: dict[Family, Path],
    family: Family,
    data: TokenFile,
) -> None:
    eager = AutoModelForCausalLM.from_pretrained(base_directories[family], attn_implementation="eager")
    eager_adapter = attach(eager)
    expected = reference(eager, data)
    expected_gradients = gradients(eager_adapter, expected.weight)

    model = load_base(family)
    adapter = attach(model)
    for token_budget in (1, 50, 128, 10_000):
        sums = Sums()
        for rows in batches.micro_batches(data, list(range(len(data))), token_budget):
            sums += sft.train(model, pack(data, rows))
        assert sums.mean_loss == pytest.approx(expected.mean_loss, abs=1e-6)
        assert sums.token_accuracy == pytest.approx(expected.token_accuracy, abs=1e-9)
        assert (sums.weight, sums.tokens, sums.trained_tokens) == (
            expected.weight,
            expected.tokens,
            expected.trained_tokens,
        )
        found = gradients(adapter, sums.weight)
        assert found.keys() == expected_gradients.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-6)


def test_no_document_sees_another(base: PreTrainedModel, tmp_path: Path) -> None:
    attach(base)
    first, second, third = random_examples(3, seed=8, shortest=12, longest=12)
    other_first, _, other_third = random_examples(3, seed=9, shortest=12, longest=12)
    one = load_examples(tmp_path / "one", [first, second, third])
    other = load_examples(tmp_path / "other", [other_first, second, other_third])
    with torch.no_grad():
        hidden_TH = sft.hidden_states(base, pack(one, [0, 1, 2]))
        other_TH = sft.hidden_states(base, pack(other, [0, 1, 2]))
    assert torch.equal(hidden_TH[12:24], other_TH[12:24])
    assert not torch.equal(hidden_TH[:12], other_TH[:12])


def test_no_gradient_crosses_documents(base: PreTrainedModel, tmp_path: Path) -> None:
    examples = random_examples(2, seed=8, shortest=12, longest=12)
    data = load_examples(tmp_path / "data", examples)
    batch = pack(data, [0, 1])
    seen = []
    handle = base.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.requires_grad_()) or seen[-1]
    )
    hidden_TH = sft.hidden_states(base, batch)
    handle.remove()
    (gradient_1TH,) = torch.autograd.grad(hidden_TH[12:].square().sum(), seen[0])
    assert gradient_1TH[0, :12].abs().max() == 0
    assert gradient_1TH[0, 12:].abs().max() > 0


def test_the_position_of_a_document_in_its_pack_does_not_matter(base: PreTrainedModel, data: TokenFile) -> None:
    with torch.no_grad():
        alone_TH = sft.hidden_states(base, pack(data, [5]))
        packed_TH = sft.hidden_states(base, pack(data, [0, 3, 5]))
    torch.testing.assert_close(packed_TH[-len(alone_TH) :], alone_TH, rtol=0, atol=1e-5)


def test_examples_without_trained_tokens_add_nothing(base: PreTrainedModel, tmp_path: Path) -> None:
    adapter = attach(base)
    data = load_examples(tmp_path / "data", [([5, 6, 7], [0.0, 0.0, 0.0])])
    sums = sft.train(base, pack(data, [0]))
    assert sums == Sums(tokens=3)
    assert (sums.mean_loss, sums.token_accuracy) == (0, 0)
    assert all(parameter.grad is None for parameter in adapters.parameters(adapter).values())
