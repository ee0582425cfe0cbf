"""DPO against the reference: transformers' eager attention, one whole conversation at a time, full logits.

Shapes: P pairs, L tokens of one conversation, V vocabulary; the last dimension of [P, 2] is (chosen, rejected).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.engine.pairs import load_pairs, random_pairs
from tests.engine.test_packed_training import attach, gradients
from tests.tiny import Family
from worker.contract.spec import DpoSettings
from worker.data.pair_file import PairFile
from worker.engine import batches, dpo
from worker.engine.pair_packing import pack_pairs
from worker.engine.sft import Sums

SETTINGS = [
    DpoSettings(beta=0.3),
    DpoSettings(beta=0.3, label_smoothing=0.2),
    DpoSettings(beta=0.3, loss="ipo"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PairFile:
    return load_pairs(tmp_path_factory.mktemp("data") / "pairs", random_pairs(9, seed=4))


def widen(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `dtype`, its norms too, which transformers computes in float32."""
    for module in model.modules():
        if dtype == torch.float64 and type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(F.rms_norm, normalized_shape=module.weight.shape, weight=module.weight, eps=1e-6)  # pyright: ignore
    return model.to(dtype)


def naive_log_prob(model: PreTrainedModel, prompt: list[int], tokens: list[int], weights: list[float]) -> torch.Tensor:
    tokens_L = torch.tensor([*prompt, *tokens])
    weights_L = torch.tensor([*[0.0] * len(prompt), *weights])
    logits_LV = model(input_ids=tokens_L[None], use_cache=False).logits[0]
    log_probs_L = logits_LV[:-1].double().log_softmax(1).gather(1, tokens_L[1:, None]).squeeze(1)
    return (log_probs_L * weights_L[1:]).sum()


def naive_loss(model: PreTrainedModel, adapter: PeftModel, seed: int, count: int, settings: DpoSettings) -> float:
    """Forward and backward of each pair by itself; the formulas as their papers print them."""
    total = 0.0
    for prompt, *answers in random_pairs(count, seed=seed):
        policy = [naive_log_prob(model, prompt, *answer) for answer in answers]
        with torch.no_grad(), adapter.disable_adapter():
            reference = [naive_log_prob(model, prompt, *answer) for answer in answers]
        ratios = [one - other for one, other in zip(policy, reference, strict=True)]
        if settings.loss == "ipo":
            chosen, rejected = (ratio / sum(weights) for ratio, (_, weights) in zip(ratios, answers, strict=True))
            loss = (chosen - rejected - 1 / (2 * settings.beta)) ** 2
        else:
            reward = settings.beta * (ratios[0] - ratios[1])
            swapped = settings.label_smoothing
            loss = -(1 - swapped) * torch.sigmoid(reward).log() - swapped * torch.sigmoid(-reward).log()
        loss.backward()
        total += loss.item()
    return total


def ours(
    model: PreTrainedModel, adapter: PeftModel, data: PairFile, settings: DpoSettings, token_budget: int = 10_000
) -> Sums:
    sums = Sums()
    for rows in batches.micro_batches(data, list(range(len(data))), token_budget):
        sums += dpo.train(model, adapter, pack_pairs(data, rows), settings)
    return sums


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda given: f"{given.loss}-{given.label_smoothing}")
@pytest.mark.parametrize(
    ("implementation", "dtype", "tolerance"),
    # transformers' eager attention has its softmax in float32, whatever the model is in.
    [("eager", torch.float32, 1e-5), ("sdpa", torch.float64, 1e-9)],
)
def test_any_packing_equals_the_reference(
    load_base: Callable[[Family], PreTrainedModel],
    base_directories: dict[Family, Path],
    family: Family,
    data: PairFile,
    settings: DpoSettings,
    implementation: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base_directories[family], attn_implementation=implementation)
    plain_adapter = attach(widen(plain, dtype)).to(dtype)
    expected = naive_loss(plain, plain_adapter, 4, len(data), settings)
    expected_gradients = gradients(plain_adapter, len(data))

    model = widen(load_base(family), dtype)
    adapter = attach(model).to(dtype)
    for token_budget, repeats_prompt in ((1, False), (90, False), (10_000, False), (90, True)):
        sums = ours(model, adapter, replace(data, repeats_prompt=repeats_prompt), settings, token_budget)
        assert sums.mean_loss == pytest.approx(expected / len(data), abs=tolerance)
        assert (sums.weight, sums.tokens) == (len(data), len(data.tokens))
        assert sums.trained_tokens == (data.weights > 0).sum()
        for name, gradient in gradients(adapter, sums.weight).items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=tolerance)
