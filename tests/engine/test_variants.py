"""Adapter variants and noise: exact against the reference, and unmoved by packing."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.engine import reference
from tests.engine.examples import load_examples, random_examples, spec
from worker.contract.errors import TrainError
from worker.contract.spec import LoraSettings
from worker.data.token_file import TokenFile
from worker.engine import noise, sft
from worker.engine.noise import neftune
from worker.engine.packing import pack

VARIANTS = {
    "rslora": LoraSettings(rank=4, alpha=8, rslora=True),
    "dora": LoraSettings(rank=4, alpha=8, dora=True),
    "some layers": LoraSettings(rank=4, alpha=8, target_modules=("q_proj", "down_proj")),
}


@pytest.fixture
def data(tmp_path: Path) -> TokenFile:
    return load_examples(tmp_path / "data", random_examples(8, seed=4))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_equal_the_reference(base: PreTrainedModel, data: TokenFile, variant: str) -> None:
    eager = AutoModelForCausalLM.from_pretrained(str(base.name_or_path), attn_implementation="eager").eval()
    eager_adapter, adapter = (reference.attach(model, VARIANTS[variant]) for model in (eager, base))
    expected = reference.train(eager, data)
    expected_gradients = reference.gradients(eager_adapter, expected.weight)
    for budget in (40, 10_000):
        sums = reference.packed(base, data, budget)
        assert sums.mean_loss == pytest.approx(expected.mean_loss, abs=1e-5)
        found = reference.gradients(adapter, sums.weight)
        assert found.keys() == expected_gradients.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-5)


def test_variants_differ(base: PreTrainedModel, data: TokenFile) -> None:
    losses = set()
    for lora in (reference.LORA, *VARIANTS.values()):
        adapter = reference.attach(base, lora)
        losses.add(round(reference.packed(base, data, 10_000).mean_loss, 4))
        reference.adapters.detach(adapter)
    assert len(losses) == 4


def noisy(model: PreTrainedModel, data: TokenFile, rows: list[int], step: int = 3) -> torch.Tensor:
    with torch.no_grad():
        return sft.hidden_states(model, pack(data, rows, neftune(5.0, 7, step, rows)))


def test_noise_belongs_to_the_example_and_the_step(base: PreTrainedModel, data: TokenFile) -> None:
    alone_TH, last_TH = noisy(base, data, [5]), noisy(base, data, [0, 3, 5])
    torch.testing.assert_close(last_TH[-len(alone_TH) :], alone_TH, rtol=0, atol=1e-5)
    assert torch.equal(noisy(base, data, [5]), alone_TH)
    with torch.no_grad():
        quiet_TH = sft.hidden_states(base, pack(data, [5]))
    for other_TH in (noisy(base, data, [5], step=4), quiet_TH):
        assert (other_TH - alone_TH).abs().max() > 1e-3


def test_noise_has_the_papers_scale() -> None:
    drawn = neftune(5.0, 7, 1, [3, 8])
    assert drawn is not None
    noise_TH = drawn.sample((0, 100, 125), 64)
    for part_LH, length in zip(noise_TH.split([100, 25]), (100, 25), strict=True):
        limit = 5.0 / (length * 64) ** 0.5
        assert 0.99 * limit < part_LH.abs().max() <= limit
        assert part_LH.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
    assert noise_TH.shape == (125, 64)
    assert neftune(0.0, 7, 1, [3]) is None


def test_noise_is_for_supervised_training() -> None:
    noise.check(spec(neftune_noise_alpha=5.0))
    noise.check(spec(method="dpo"))
    with pytest.raises(TrainError, match="for the method 'supervised'") as caught:
        noise.check(spec(method="dpo", neftune_noise_alpha=5.0))
    assert caught.value.param == "hone.neftune_noise_alpha"
