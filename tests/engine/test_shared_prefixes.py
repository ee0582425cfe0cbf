"""Training with shared prefixes against the reference, for every family: transformers' eager, one example at a time."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.engine import families, reference
from tests.engine.examples import Example, load_examples, random_examples, spec
from tests.engine.sharers import FIRST, load_sharers, sharing_examples
from tests.engine.wide import Float64, widen
from worker.contract.spec import LoraSettings
from worker.data.token_file import TokenFile
from worker.engine import base_model, batches, prefixes, sft
from worker.engine.packing import pack

# Each row by itself; groups that the budget cuts; all in one micro-batch.
BUDGETS = (1, 50, 10_000)
LENGTH_DEPENDENT = {"llama-dynamic", "phi4"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    return load_sharers(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module", params=families.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def directory(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build(tmp_path_factory.mktemp("bases") / "base", families.configs()[name])


def ours(directory: Path, dtype: Any = "float32") -> tuple[PreTrainedModel, PeftModel]:
    model = base_model.load(directory, device="cpu", dtype=dtype, tick=lambda: None)
    return model, reference.attach(model)


def eager(directory: Path) -> tuple[PreTrainedModel, PeftModel]:
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    return model, reference.attach(model)


def sharing(model: PreTrainedModel, data: TokenFile) -> TokenFile:
    """As a run decides it."""
    exact = prefixes.can_be_shared(model, spec(lora=LoraSettings(rank=4, alpha=8)))
    return replace(data, shares_prefixes=exact)


@pytest.mark.parametrize(("wide", "tolerance"), [(True, 1e-9), (False, 1e-5)], ids=["float64", "float32"])
def test_losses_gradients_and_counts_equal_the_reference(
    directory: Path, name: str, data: TokenFile, wide: bool, tolerance: float
) -> None:
    (model, adapter), (eager_model, eager_adapter) = ours(directory), eager(directory)
    if wide:
        widen(model)
        widen(eager_model)
    given = sharing(model, data)
    assert given.shares_prefixes is (name not in LENGTH_DEPENDENT)
    with Float64() if wide else nullcontext():
        expected = reference.train(eager_model, data)
        expected_gradients = reference.gradients(eager_adapter, expected.weight)
        computed = []
        for budget in BUDGETS:
            groups = batches.micro_batches(given, list(range(len(given))), budget)
            computed.append(sum(len(pack(given, group).tokens_T) for group in groups))
            sums = reference.packed(model, given, budget)
            assert abs(sums.mean_loss - expected.mean_loss) < tolerance
            assert sums.token_accuracy == pytest.approx(expected.token_accuracy, abs=1e-9)
            assert (sums.weight, sums.tokens, sums.trained_tokens) == (
                expected.weight,
                expected.tokens,
                expected.trained_tokens,
            )
            for parameter, gradient in reference.gradients(adapter, sums.weight).items():
                torch.testing.assert_close(gradient, expected_gradients[parameter], rtol=0, atol=tolerance)
    if given.shares_prefixes:  # or nothing was tested
        assert expected.tokens == computed[0] > computed[1] > computed[2]


def test_in_bfloat16_it_is_as_near_to_the_reference_as_without(directory: Path, data: TokenFile) -> None:
    """The loss within 0.02; the cosine of the gradient's angle at most 0.01 less."""
    (model, adapter), (eager_model, eager_adapter) = ours(directory, "bfloat16"), eager(directory)
    expected = reference.train(eager_model, data)
    eager_gradient = flat(reference.gradients(eager_adapter, expected.weight))
    cosines = []
    for given in (data, sharing(model, data)):
        sums = reference.packed(model, given, 10_000)
        assert abs(sums.mean_loss - expected.mean_loss) < 0.02
        gradient = flat(reference.gradients(adapter, sums.weight))
        cosines.append(torch.cosine_similarity(gradient, eager_gradient, dim=0))
    assert cosines[1] > cosines[0] - 0.01


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def test_no_sharer_sees_another(directory: Path, tmp_path: Path) -> None:
    """Three rows behind one prompt: the others' own tokens change, and one becomes longer than windows reach."""
    model, _ = ours(directory)
    prompt, one, two, three = (tokens for tokens, _ in random_examples(4, seed=20, shortest=FIRST, longest=FIRST))
    (longer,), (other,) = (random_examples(1, seed=seed, shortest=30, longest=30) for seed in (21, 22))

    def hidden(path: Path, *own: list[int]) -> torch.Tensor:
        rows: list[Example] = [([*prompt, *tokens], [0.0] * (FIRST + len(tokens) - 1) + [1.0]) for tokens in own]
        given = sharing(model, load_examples(path, rows))
        with torch.no_grad():
            hidden_TH = sft.hidden_states(model, pack(given, [0, 1, 2]))
        # Of the second row: a prompt of its own where none is shared.
        first = FIRST + len(own[0]) if given.shares_prefixes else 2 * FIRST + len(own[0])
        return hidden_TH[first : first + FIRST]

    before = hidden(tmp_path / "before", one, two, three)
    torch.testing.assert_close(before, hidden(tmp_path / "after", other[0], two, longer[0]), rtol=0, atol=1e-6)
    assert not torch.equal(before, hidden(tmp_path / "moved", one, three, three))


def test_no_gradient_crosses_sharers(tmp_path: Path) -> None:
    """It goes from a row to its prefix, not to what others put behind that."""
    directory = families.build(tmp_path / "base", families.configs()["llama3"])
    model, _ = ours(directory)
    data = replace(load_examples(tmp_path / "data", sharing_examples()), shares_prefixes=True)
    batch = pack(data, [0, 5, 1])
    (_, prefix, first, second, third) = batch.bounds
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.requires_grad_()) or seen[-1]
    )
    hidden_TH = sft.hidden_states(model, batch)
    handle.remove()
    (gradient_1TH,) = torch.autograd.grad(hidden_TH[first:second].square().sum(), seen[0])
    assert gradient_1TH[0, :prefix].abs().amin(dim=1).max() > 0
    assert gradient_1TH[0, first:second].abs().max() > 0
    assert gradient_1TH[0, prefix:first].abs().max() == gradient_1TH[0, second:third].abs().max() == 0
