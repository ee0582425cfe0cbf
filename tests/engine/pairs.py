"""Seeded preference pairs of random tokens, their files, and a spec to train on them."""

import random
from pathlib import Path
from typing import Any

from tests.engine import examples
from worker.contract.events import Start
from worker.contract.spec import DpoSettings, LoraSettings, OptimizerSettings, TrainSpec
from worker.data import pair_file
from worker.data.pair_file import PairFile

VOCAB_SIZE = examples.VOCAB_SIZE
Pair = tuple[list[int], tuple[list[int], list[float]], tuple[list[int], list[float]]]


def random_pairs(count: int, *, seed: int = 0, longest: int = 16) -> list[Pair]:
    """Pairs whose answers have some untrained tokens, also at their start."""
    source = random.Random(seed)

    def tokens(shortest: int = 1) -> list[int]:
        return [source.randrange(VOCAB_SIZE) for _ in range(source.randint(shortest, longest))]

    def answer() -> tuple[list[int], list[float]]:
        given = tokens(2)
        return given, [*(source.choice((0.0, 1.0, 1.0)) for _ in given[1:]), 1.0]

    return [(tokens(), answer(), answer()) for _ in range(count)]


def load_pairs(path: Path, pairs: list[Pair]) -> PairFile:
    pair_file.write(path, pairs)
    return PairFile.load(path)


def spec(**changes: Any) -> TrainSpec:
    """The spec of the supervised tests, without dropout."""
    settings: dict[str, Any] = {
        "method": "dpo",
        "dpo": DpoSettings(beta=0.3),
        "lora": LoraSettings(rank=4, alpha=8),
        "optimizer": OptimizerSettings(learning_rate=5e-3, warmup_steps=2),
    }
    return examples.spec(**{**settings, **changes})


def start(directory: Path, base_directory: Path, train_spec: TrainSpec, *, run: str = "run", **fields: Any) -> Start:
    """A start whose files lie under `directory`: 21 training and 6 validation pairs."""
    made = examples.start(directory, base_directory, train_spec, run=run, **fields)
    assert made.validation_data is not None
    pair_file.write(made.training_data, random_pairs(21, seed=1))
    pair_file.write(made.validation_data, random_pairs(6, seed=2))
    return made
