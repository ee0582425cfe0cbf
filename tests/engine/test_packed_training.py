"""Packed training against the reference: transformers' eager attention, one example at a time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.engine import reference
from tests.engine.examples import load_examples, random_examples
from tests.tiny import Family
from worker.data.token_file import TokenFile
from worker.engine import adapters, sft
from worker.engine.packing import pack
from worker.engine.sft import Sums


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
    eager_adapter = reference.attach(eager)
    expected = reference.train(eager, data)
    expected_gradients = reference.gradients(eager_adapter, expected.weight)

    model = load_base(family)
    adapter = reference.attach(model)
    for token_budget in (1, 50, 128, 10_000):
        sums = reference.packed(model, data, token_budget)
        assert sums.mean_loss == pytest.approx(expected.mean_loss, abs=1e-6)
        assert sums.token_accuracy == pytest.approx(expected.token_accuracy, abs=1e-9)
        assert (sums.weight, sums.tokens, sums.trained_tokens) == (
            expected.weight,
            expected.tokens,
            expected.trained_tokens,
        )
        found = reference.gradients(adapter, sums.weight)
        assert found.keys() == expected_gradients.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-6)


def test_no_document_sees_another(base: PreTrainedModel, tmp_path: Path) -> None:
    reference.attach(base)
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
    adapter = reference.attach(base)
    data = load_examples(tmp_path / "data", [([5, 6, 7], [0.0, 0.0, 0.0])])
    sums = sft.train(base, pack(data, [0]))
    assert sums == Sums(tokens=3)
    assert (sums.mean_loss, sums.token_accuracy) == (0, 0)
    assert all(parameter.grad is None for parameter in adapters.parameters(adapter).values())
