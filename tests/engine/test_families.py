"""Every promised family against the reference, packed: losses, gradients, and no example sees another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.engine import families, reference
from tests.engine.examples import load_examples, random_examples
from tests.engine.wide import Float64, widen
from worker.data.token_file import TokenFile
from worker.engine import base_model, sft
from worker.engine.packing import pack

BUDGETS = (40, 10_000)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    return load_examples(tmp_path_factory.mktemp("data") / "data", random_examples(8, seed=4))


@pytest.fixture(scope="module", params=families.NAMES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build(tmp_path_factory.mktemp("bases") / "base", families.configs()[request.param])


def ours(directory: Path, dtype: Any = "float32") -> PreTrainedModel:
    return base_model.load(directory, device="cpu", dtype=dtype, tick=lambda: None)


def eager(directory: Path, dtype: str = "float32") -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=dtype).eval()


def assert_equal(
    found: tuple[PreTrainedModel, PeftModel], expected: tuple[PreTrainedModel, PeftModel], data: TokenFile, atol: float
) -> None:
    """Losses within `atol`, gradients too, for several ways to pack."""
    (model, adapter), (eager_model, eager_adapter) = found, expected
    expected_sums = reference.train(eager_model, data)
    expected_gradients = reference.gradients(eager_adapter, expected_sums.weight)
    for budget in BUDGETS:
        sums = reference.packed(model, data, budget)
        assert abs(sums.mean_loss - expected_sums.mean_loss) < atol
        for name, gradient in reference.gradients(adapter, sums.weight).items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=atol)


def test_float64_equals_the_reference_to_1e_9(directory: Path, data: TokenFile) -> None:
    model, eager_model = ours(directory), eager(directory)
    adapter, eager_adapter = reference.attach(model), reference.attach(eager_model)
    widen(model)
    widen(eager_model)
    with Float64():
        assert_equal((model, adapter), (eager_model, eager_adapter), data, 1e-9)


def test_float32_equals_the_reference_to_1e_5(directory: Path, data: TokenFile) -> None:
    model, eager_model = ours(directory), eager(directory)
    assert_equal((model, reference.attach(model)), (eager_model, reference.attach(eager_model)), data, 1e-5)


def test_bfloat16_stays_near_the_float32_reference(directory: Path, data: TokenFile) -> None:
    """Loss within 0.02, the gradient's direction within a cosine of 0.97."""
    model, eager_model = ours(directory, "bfloat16"), eager(directory)
    adapter, eager_adapter = reference.attach(model), reference.attach(eager_model)
    expected, sums = reference.train(eager_model, data), reference.packed(model, data, BUDGETS[0])
    gradient, eager_gradient = (
        torch.cat([value.flatten() for value in reference.gradients(one, expected.weight).values()])
        for one in (adapter, eager_adapter)
    )
    assert abs(sums.mean_loss - expected.mean_loss) < 0.02
    assert torch.cosine_similarity(gradient, eager_gradient, dim=0) > 0.97


def test_no_example_sees_another(directory: Path, tmp_path: Path) -> None:
    model = ours(directory)
    reference.attach(model)
    first, second, third = random_examples(3, seed=8, shortest=12, longest=12)
    (longer,) = random_examples(1, seed=9, shortest=30, longest=30)  # beyond windows and original context lengths
    (other,) = random_examples(1, seed=10, shortest=12, longest=12)
    one = load_examples(tmp_path / "one", [first, second, third])
    changed = load_examples(tmp_path / "changed", [other, second, longer])
    with torch.no_grad():
        hidden_TH = sft.hidden_states(model, pack(one, [0, 1, 2]))
        changed_TH = sft.hidden_states(model, pack(changed, [0, 1, 2]))
    torch.testing.assert_close(hidden_TH[12:24], changed_TH[12:24], rtol=0, atol=1e-6)
    assert not torch.equal(hidden_TH[:12], changed_TH[:12])
    assert not torch.equal(hidden_TH[24:], changed_TH[24:36])
