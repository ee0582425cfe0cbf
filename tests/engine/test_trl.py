"""TRL's trainers and our runs: the same initial adapter, the same examples at each step, the same result.

Compared are the losses of each step, to 1e-5 nats, and the adapter's weights after the last, to 2e-5, in float32:
TRL computes its head and losses in float32 whatever the model is in. The optimizer's epsilon is 1e-5. With the
usual 1e-8, Adam would blow up rounding: a weight whose gradient is next to nothing moves by a whole rate.
TRL runs with eager attention for Gemma 2, whose softcap its default, sdpa, drops.
"""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer

from tests.engine import examples, families, pairs, reference, trl_trainers
from tests.engine.examples import Example
from tests.engine.pairs import Pair
from worker.contract.spec import DpoSettings, Execution, OptimizerSettings
from worker.data import pair_file
from worker.engine import adapters, base_model
from worker.engine.batches import Plan
from worker.engine.run import Run, load_data

# PEFT asks transformers under a name that it has since changed, when TRL attaches the adapter.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STEPS, BATCH_SIZE = 4, 4
BETA = 0.3
ATTENTION = {"llama3": "sdpa", "qwen2.5": "sdpa", "gemma2": "eager"}
OPTIMIZER = OptimizerSettings(learning_rate=5e-3, schedule="constant", epsilon=1e-5)
SAME_OPTIMIZER = {"learning_rate": 5e-3, "adam_epsilon": 1e-5, "max_steps": STEPS}
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 2e-5


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    configs = families.configs()
    return {name: families.build(root / name, configs[name]) for name in ATTENTION}


def trained_examples() -> list[Example]:
    """A token is trained or not: TRL knows no weights between."""
    source = random.Random(11)
    made = examples.random_examples(STEPS * BATCH_SIZE, seed=12)
    return [(tokens, [0.0, *(float(source.random() < 0.6) for _ in tokens[2:]), 1.0]) for tokens, _ in made]


def trained_pairs() -> list[Pair]:
    """All tokens of an answer are trained, and its last one is the end of the sequence."""

    def words(tokens: list[int]) -> list[int]:
        return [2 + token % (pairs.VOCAB_SIZE - 2) for token in tokens]  # neither padding nor the end

    def whole(tokens: list[int]) -> Example:
        return [*words(tokens), trl_trainers.EOS], [1.0] * (len(tokens) + 1)

    made = pairs.random_pairs(STEPS * BATCH_SIZE, seed=13)
    return [(words(prompt), whole(chosen), whole(rejected)) for prompt, (chosen, _), (rejected, _) in made]


class Ours:
    """A run of ours, stopped before its first step, and what the other must begin with."""

    def __init__(self, base: Path, directory: Path, data: list[Any], dpo: DpoSettings | None = None) -> None:
        spec = examples.spec(
            method="supervised" if dpo is None else "dpo",
            dpo=dpo,
            n_epochs=1,
            batch_size=BATCH_SIZE,
            lora=reference.LORA,
            optimizer=OPTIMIZER,
            # Several micro-batches a step, so that packing and splitting are part of what is compared.
            execution=Execution(device="cpu", dtype="float32", token_budget=64, num_threads=1),
        )
        start = examples.start(directory, base, spec)
        (pair_file.write if dpo else examples.write_examples)(Path(start.training_data), data)
        model = base_model.load(base, device="cpu", dtype="float32", tick=lambda: None)
        self.adapter = reference.attach(model)
        self.initial = {name: value.clone() for name, value in adapters.tensors(self.adapter).items()}
        config = copy.deepcopy(self.adapter.peft_config["default"])
        assert isinstance(config, LoraConfig)
        self.config = config
        plan = Plan(len(data), 1, BATCH_SIZE, spec.seed)
        self.in_order = [data[row] for step in range(1, STEPS + 1) for row in plan.rows(step)]
        training = load_data(start.training_data, model, start, param="training_file")
        assert spec.execution is not None
        self._run = Run(start, model, self.adapter, spec.execution, training, None, lambda _event: None, lambda: None)
        self._run.prepare()

    def losses(self) -> list[float]:
        return [self._run.step().loss for _ in range(STEPS)]


def theirs(directory: Path, name: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation=ATTENTION[name])


def assert_equal(ours: Ours, trainer: Trainer) -> None:
    """Trains both."""
    expected = trl_trainers.losses_of_steps(trainer)
    assert ours.losses() == pytest.approx(expected, abs=LOSS_TOLERANCE, rel=0)
    assert len({round(loss, 3) for loss in expected}) == STEPS
    assert isinstance(trainer.model, PeftModel)
    trained = adapters.tensors(trainer.model)
    for name, value in adapters.tensors(ours.adapter).items():
        torch.testing.assert_close(value, trained[name], rtol=0, atol=WEIGHT_TOLERANCE)
        assert (value - ours.initial[name]).abs().max() > 100 * WEIGHT_TOLERANCE


@pytest.mark.parametrize("name", ATTENTION)
def test_supervised_training_equals_sft_trainer(directories: dict[str, Path], name: str, tmp_path: Path) -> None:
    ours = Ours(directories[name], tmp_path, trained_examples())
    trainer = trl_trainers.sft_trainer(
        theirs(directories[name], name),
        ours.config,
        ours.initial,
        ours.in_order,
        tmp_path / "trl",
        per_device_train_batch_size=BATCH_SIZE,
        **SAME_OPTIMIZER,
    )
    assert_equal(ours, trainer)


@pytest.mark.parametrize("name", ATTENTION)
def test_preference_training_equals_dpo_trainer(directories: dict[str, Path], name: str, tmp_path: Path) -> None:
    assert_equal_dpo(directories[name], name, tmp_path, DpoSettings(beta=BETA), loss_type="sigmoid")


def test_ipo_equals_dpo_trainer(directories: dict[str, Path], tmp_path: Path) -> None:
    """With h the difference of log-ratios, each divided by its answer's length, both are (h - 1 / (2 beta))^2."""
    assert_equal_dpo(directories["llama3"], "llama3", tmp_path, DpoSettings(beta=BETA, loss="ipo"), loss_type="ipo")


def test_label_smoothing_equals_dpo_trainer(directories: dict[str, Path], tmp_path: Path) -> None:
    """TRL's sigmoid loss takes no label smoothing, but its `aot` does: with h the difference of log-ratios,

        -(1 - smoothing) log sigmoid(beta h) - smoothing log sigmoid(-beta h),

    where h is sorted within the batch. That is conservative DPO, ours, in batches of a single pair.
    """
    settings = DpoSettings(beta=BETA, label_smoothing=0.2)
    alone = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH_SIZE}
    assert_equal_dpo(directories["llama3"], "llama3", tmp_path, settings, loss_type="aot", label_smoothing=0.2, **alone)


def assert_equal_dpo(directory: Path, name: str, scratch: Path, dpo: DpoSettings, **settings: Any) -> None:
    ours = Ours(directory, scratch, trained_pairs(), dpo)
    trainer = trl_trainers.dpo_trainer(
        theirs(directory, name),
        ours.config,
        ours.initial,
        ours.in_order,
        scratch / "trl",
        beta=BETA,
        **{"per_device_train_batch_size": BATCH_SIZE, **SAME_OPTIMIZER, **settings},
    )
    assert_equal(ours, trainer)
