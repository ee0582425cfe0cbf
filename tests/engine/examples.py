"""Seeded examples of random tokens, their files, and specs to train on them."""

import random
from pathlib import Path
from typing import Any

from worker.contract.events import Start
from worker.contract.spec import BaseModelRef, Execution, LoraSettings, OptimizerSettings, TrainSpec
from worker.data import token_file

VOCAB_SIZE = 512
Example = tuple[list[int], list[float]]


def random_examples(count: int, *, seed: int = 0, shortest: int = 3, longest: int = 40) -> list[Example]:
    """Examples with untrained, trained and half-weighted tokens; the first token of each has weight 0."""
    source = random.Random(seed)
    examples = []
    for _ in range(count):
        length = source.randint(shortest, longest)
        tokens = [source.randrange(VOCAB_SIZE) for _ in range(length)]
        weights = [source.choice((0.0, 0.5, 1.0, 1.0)) for _ in range(length - 1)]
        examples.append((tokens, [0.0, *weights]))
    return examples


def write_examples(path: Path, examples: list[Example]) -> Path:
    token_file.write(path, examples)
    return path


def load_examples(path: Path, examples: list[Example]) -> token_file.TokenFile:
    return token_file.TokenFile.load(write_examples(path, examples))


def spec(**changes: Any) -> TrainSpec:
    """A run of 12 steps with dropout, evaluations and checkpoints inside and at the ends of its 2 epochs."""
    settings: dict[str, Any] = {
        "base": BaseModelRef(id="tiny/base", revision="0001"),
        "seed": 7,
        "n_epochs": 2,
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
        "max_sequence_tokens": 64,
        "lora": LoraSettings(rank=4, alpha=8, dropout=0.1),
        "optimizer": OptimizerSettings(learning_rate=5e-3, warmup_steps=2),
        "eval_interval_steps": 3,
        "eval_examples": 4,
        "checkpoint_interval_steps": 4,
        "execution": Execution(device="cpu", dtype="float32", token_budget=96, num_threads=1),
    }
    return TrainSpec(**{**settings, **changes})


def start(
    directory: Path,
    base_directory: Path,
    train_spec: TrainSpec,
    *,
    run: str = "run",
    resume_directory: str | None = None,
    examples: list[Example] | None = None,
) -> Start:
    """A start whose files lie under `directory`: 21 training and 6 validation examples."""
    work_directory = directory / run
    work_directory.mkdir(parents=True)
    training = write_examples(work_directory / "training", examples or random_examples(21, seed=1))
    validation = write_examples(work_directory / "validation", random_examples(6, seed=2))
    return Start(
        run=run,
        spec=train_spec,
        base_directory=str(base_directory),
        training_data=str(training),
        validation_data=str(validation),
        work_directory=str(work_directory),
        resume_directory=resume_directory,
        card={"Training file": "sha256:0123"},
    )
