"""TRL's own trainers: padded, or at their best for supervised training, packed best-fit-decreasing.

The rows of a step, too, are those that TRL's data preparation made.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

from benchmarks.contest import Contest
from tests.engine import trl_trainers

if TYPE_CHECKING:
    from benchmarks.contestant import Turns

# A row of packed examples and the next: what a step trains where TRL packs, as many tokens as a batch of 8 has.
ROWS_A_STEP = 2


class TakingTurns(TrainerCallback):
    """Holds the trainer back between two steps. A step begins where the last one ended, so it fetches its data."""

    def __init__(self, turns: "Turns", loss: trl_trainers.LossOfStep) -> None:
        self._turns, self._loss = turns, loss

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        self._turns.ready()
        self._turns.begin()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self._turns.end(self._loss.take())
        self._turns.begin()


def take_part(contest: Contest, directory: Path, turns: "Turns") -> None:
    model = AutoModelForCausalLM.from_pretrained(directory / "base", dtype=getattr(torch, contest.dtype))
    config = LoraConfig.from_pretrained(str(directory / "initial"))
    config.inference_mode = False
    initial = load_file(directory / "initial" / "adapter_model.safetensors")
    data = json.loads((directory / "data.json").read_text())
    settings: dict[str, Any] = {
        "max_steps": contest.steps,
        "max_length": contest.longest,
        "per_device_train_batch_size": contest.batch_size,
        "bf16": contest.dtype == "bfloat16",
        "activation_checkpointing": contest.checkpointing,
    }
    if contest.packing:
        settings |= {
            "packing": True,
            "packing_strategy": "bfd",
            "shuffle_dataset": True,  # or the longest rows would come first
            "per_device_train_batch_size": contest.rows_a_pass,
            "gradient_accumulation_steps": ROWS_A_STEP // contest.rows_a_pass,
        }
    if contest.method == "dpo":
        build: Any = trl_trainers.dpo_trainer
        settings |= {"beta": 0.1, "loss_type": "sigmoid"}
    else:
        build = trl_trainers.sft_trainer
    trainer = build(model, config, initial, data, directory / "trl", **settings)
    (directory / "steps.json").write_text(json.dumps(_steps(contest, trainer, data)))
    trainer.add_callback(TakingTurns(turns, trl_trainers.LossOfStep(trainer)))
    trainer.train()


def _steps(contest: Contest, trainer: Trainer, data: list[Any]) -> list[list[int]]:
    if not contest.packing:
        size = contest.batch_size
        return [list(range(step * size, (step + 1) * size)) for step in range(contest.steps)]
    numbers = {tuple(tokens): number for number, (tokens, _) in enumerate(data)}
    assert len(numbers) == len(data)
    rows: list[list[int]] = []
    dataset: Any = trainer.train_dataset
    for row in dataset:
        ends = torch.tensor(row["seq_lengths"]).cumsum(0).tolist()
        rows.append([numbers[tuple(row["input_ids"][start:end])] for start, end in zip([0, *ends], ends, strict=False)])
    assert len(rows) >= contest.steps * ROWS_A_STEP, "more examples are needed to fill the rows"
    return [
        [number for row in rows[step * ROWS_A_STEP : (step + 1) * ROWS_A_STEP] for number in row]
        for step in range(contest.steps)
    ]
