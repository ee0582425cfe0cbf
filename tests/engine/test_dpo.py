"""DPO against the reference: transformers' eager attention, one whole conversation at a time, full logits.

Shapes: P pairs, L tokens of one conversation, T of a micro-batch, V vocabulary; the last dimension of [P, 2] is
(chosen, rejected).
"""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.engine import families, reference
from tests.engine.pairs import Pair, load_pairs, random_pairs, spec
from tests.engine.wide import Float64, widen
from worker.contract.spec import DpoSettings, LoraSettings
from worker.data.pair_file import PairFile
from worker.engine import adapters, base_model, batches, dpo, prefixes, sft
from worker.engine.pair_packing import pack_pairs
from worker.engine.sft import Sums

SIGMOID = DpoSettings(beta=0.3)
VARIANTS = [DpoSettings(beta=0.3, label_smoothing=0.2), DpoSettings(beta=0.3, loss="ipo")]
PAIRS = random_pairs(7, seed=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PairFile:
    return load_pairs(tmp_path_factory.mktemp("data") / "pairs", PAIRS)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: families.build(root / name, config) for name, config in families.configs().items()}


def ours(directory: Path) -> tuple[PreTrainedModel, PeftModel]:
    model = base_model.load(directory, device="cpu", dtype="float32", tick=lambda: None)
    return model, reference.attach(model)


def eager(directory: Path) -> tuple[PreTrainedModel, PeftModel]:
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    return model, reference.attach(model)


def naive_log_prob(model: PreTrainedModel, prompt: list[int], answer: tuple[list[int], list[float]]) -> torch.Tensor:
    tokens_L = torch.tensor([*prompt, *answer[0]])
    weights_L = torch.tensor([*[0.0] * len(prompt), *answer[1]])
    logits_LV = model(input_ids=tokens_L[None], use_cache=False).logits[0]
    log_probs_L = logits_LV[:-1].double().log_softmax(1).gather(1, tokens_L[1:, None]).squeeze(1)
    return (log_probs_L * weights_L[1:]).sum()


def naive_loss(model: PreTrainedModel, adapter: PeftModel, pairs: list[Pair], settings: DpoSettings) -> float:
    """Each conversation by itself; the formulas as their papers print them.

    Shorter ones first, for dynamic NTK remembers the longest it has seen.
    """
    sequences = [(prompt, answer) for prompt, *answers in pairs for answer in answers]
    ratios: dict[int, torch.Tensor] = {}
    for number, (prompt, answer) in sorted(enumerate(sequences), key=lambda one: len(one[1][0]) + len(one[1][1][0])):
        policy = naive_log_prob(model, prompt, answer)
        with torch.no_grad(), adapter.disable_adapter():
            without = naive_log_prob(model, prompt, answer)
        ratios[number] = policy - without
    losses: list[torch.Tensor] = []
    for number in range(len(pairs)):
        chosen, rejected = ratios[2 * number], ratios[2 * number + 1]
        if settings.loss == "ipo":
            chosen = chosen / sum(pairs[number][1][1])
            rejected = rejected / sum(pairs[number][2][1])
            losses.append((chosen - rejected - 1 / (2 * settings.beta)) ** 2)
        else:
            reward = settings.beta * (chosen - rejected)
            swapped = settings.label_smoothing
            losses.append(-(1 - swapped) * torch.sigmoid(reward).log() - swapped * torch.sigmoid(-reward).log())
    loss = torch.stack(losses).sum()
    loss.backward()
    return loss.item()


def packed(model: PreTrainedModel, adapter: PeftModel, data: PairFile, settings: DpoSettings, budget: int) -> Sums:
    sums = Sums()
    for rows in batches.micro_batches(data, list(range(len(data))), budget):
        sums += dpo.train(model, adapter, pack_pairs(data, rows), settings)
    return sums


def assert_equal(directory: Path, data: PairFile, settings: DpoSettings, *, wide: bool) -> None:
    """Any packing, and the prompt once or twice, where the model's positions allow that."""
    model, adapter = ours(directory)
    eager_model, eager_adapter = eager(directory)
    if wide:
        widen(model)
        widen(eager_model)
    tolerance = 1e-9 if wide else 1e-5
    with Float64() if wide else nullcontext():
        expected = naive_loss(eager_model, eager_adapter, PAIRS, settings)
        expected_gradients = reference.gradients(eager_adapter, len(data))
        for budget, repeats_prompt in ((1, False), (90, False), (10_000, True)):
            given = replace(data, repeats_prompt=repeats_prompt or not prefixes.can_be_shared(model, spec()))
            sums = packed(model, adapter, given, settings, budget)
            assert sums.mean_loss == pytest.approx(expected / len(data), abs=tolerance)
            assert (sums.weight, sums.tokens) == (len(data), len(data.tokens))
            assert sums.trained_tokens == (data.weights > 0).sum()
            for name, gradient in reference.gradients(adapter, sums.weight).items():
                torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", families.NAMES)
def test_float64_equals_the_reference_to_1e_9(directories: dict[str, Path], data: PairFile, name: str) -> None:
    assert_equal(directories[name], data, SIGMOID, wide=True)


@pytest.mark.parametrize("name", ["llama3", "qwen2.5", "gemma2"])
def test_float32_equals_the_reference_to_1e_5(directories: dict[str, Path], data: PairFile, name: str) -> None:
    assert_equal(directories[name], data, SIGMOID, wide=False)


@pytest.mark.parametrize("settings", VARIANTS, ids=["smoothed", "ipo"])
def test_variants_equal_their_formulas_to_1e_9(
    directories: dict[str, Path], data: PairFile, settings: DpoSettings
) -> None:
    assert_equal(directories["llama3"], data, settings, wide=True)


def test_an_untouched_adapter_has_a_loss_of_ln_2(directories: dict[str, Path], data: PairFile) -> None:
    model, adapter = ours(directories["llama3"])
    adapters.reset(adapter, seed=1)
    sums = packed(model, adapter, data, SIGMOID, 10_000)
    assert sums.mean_loss == pytest.approx(math.log(2), abs=1e-12)
    assert (sums.reward_chosen, sums.reward_rejected, sums.correct) == (0, 0, 0)


def test_rewards_and_accuracy_are_those_of_the_pairs(directories: dict[str, Path], data: PairFile) -> None:
    model, adapter = ours(directories["llama3"])
    one_by_one = [dpo.evaluate(model, adapter, pack_pairs(data, [row]), SIGMOID) for row in range(len(data))]
    together = dpo.evaluate(model, adapter, pack_pairs(data, range(len(data))), SIGMOID)
    assert together.correct == sum(one.reward_chosen > one.reward_rejected for one in one_by_one)
    assert 0 < together.correct < len(data)
    for one in one_by_one:
        assert one.loss == pytest.approx(math.log1p(math.exp(one.reward_rejected - one.reward_chosen)), abs=1e-6)
    assert together.reward_chosen == pytest.approx(sum(one.reward_chosen for one in one_by_one), abs=1e-5)


def test_no_pair_sees_another_and_no_answer_the_other(directories: dict[str, Path], tmp_path: Path) -> None:
    model, _ = ours(directories["gemma2"])
    first, second, third = random_pairs(3, seed=8)
    other_first, other_second, _ = random_pairs(3, seed=9)
    length = len(first[0]) + len(first[1][0]) + len(first[2][0])
    changed = (first[0], other_second[1], first[2])
    moved = length + len(other_second[1][0]) - len(first[1][0])
    one = load_pairs(tmp_path / "one", [first, second, third])
    other = load_pairs(tmp_path / "other", [changed, second, other_first])
    with torch.no_grad():
        one_TH = sft.hidden_states(model, pack_pairs(one, [0, 1, 2]).row)
        other_TH = sft.hidden_states(model, pack_pairs(other, [0, 1, 2]).row)
    prompt, rejected = len(first[0]), len(first[2][0])
    assert torch.equal(one_TH[:prompt], other_TH[:prompt])
    assert torch.equal(one_TH[length - rejected : length], other_TH[moved - rejected : moved])
    second_length = len(second[0]) + len(second[1][0]) + len(second[2][0])
    assert torch.equal(one_TH[length : length + second_length], other_TH[moved : moved + second_length])


def test_prompts_are_shared_only_where_that_is_exact(directories: dict[str, Path]) -> None:
    exact = {name for name, directory in directories.items() if prefixes.can_be_shared(ours(directory)[0], spec())}
    assert set(directories) - exact == {"llama-dynamic", "phi4"}
    model, _ = ours(directories["llama3"])
    assert not prefixes.can_be_shared(model, spec(lora=LoraSettings(dropout=0.1)))
    model.config.attention_dropout = 0.1
    assert not prefixes.can_be_shared(model, spec())


def test_dropout_reaches_the_policy_and_not_the_reference(directories: dict[str, Path], data: PairFile) -> None:
    model = base_model.load(directories["llama3"], device="cpu", dtype="float32", tick=lambda: None)
    adapter = reference.attach(model, LoraSettings(rank=4, alpha=8, dropout=0.5))
    batch = pack_pairs(replace(data, repeats_prompt=True), range(len(data)))
    model.train()
    one, other = (dpo.train(model, adapter, batch, SIGMOID) for _ in range(2))
    assert one.loss != other.loss
    assert model.training
    adapters.reset(adapter, seed=1)  # without an effect of its own, dropout has none either
    assert dpo.train(model, adapter, batch, SIGMOID).mean_loss == pytest.approx(math.log(2), abs=1e-12)
