"""The plan of a run: which examples each step takes, and how they fall into micro-batches.

The plan is a pure function of (seed, epoch, data, batch size, token budget): a position in it is a
step number, so a resumed run continues with exactly the examples that were next.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from worker.contract.errors import Blame, TrainError
from worker.data.pair_file import PairFile
from worker.data.token_file import TokenFile
from worker.engine.packing import first_fit_decreasing
from worker.engine.prefixes import sharings
from worker.engine.seeds import shuffled

Dataset = TokenFile | PairFile

# Validation rows are packed in groups of this many: packing looks at every open bin.
_EVALUATION_GROUP = 256


@dataclass(frozen=True)
class Plan:
    """The steps of a run, numbered from 1; `epoch` counts from 1 too."""

    num_examples: int
    n_epochs: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_examples // self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.n_epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        return (step - 1) // self.steps_per_epoch + 1

    def is_epoch_end(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0

    def rows(self, step: int) -> list[int]:
        """The examples of a step; the last step of an epoch may have fewer than `batch_size`."""
        order = _epoch_order(self.num_examples, self.seed, self.epoch(step))
        first = (step - 1) % self.steps_per_epoch * self.batch_size
        return [int(row) for row in order[first : first + self.batch_size]]


@lru_cache(maxsize=1)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return shuffled(num_examples, seed, "epoch", epoch)


def micro_batches(data: Dataset, rows: list[int], token_budget: int) -> list[list[int]]:
    """The given rows, grouped into micro-batches of at most `token_budget` tokens where an example allows it.

    Tokens that rows of a micro-batch share count once; rows that share them are kept together.
    """
    units = _units(data, rows, token_budget)
    bins = first_fit_decreasing([unit.tokens for unit in units], token_budget)
    return [[row for index in group for row in units[index].rows] for group in bins]


class _Unit(NamedTuple):
    """Rows that lie in one micro-batch, and the tokens that they take there."""

    rows: list[int]
    tokens: int


def _units(data: Dataset, rows: list[int], token_budget: int) -> list[_Unit]:
    """Each row, or as many rows that share a prefix as the budget takes."""
    if isinstance(data, PairFile):
        return [_Unit([row], data.length(row)) for row in rows]
    units = []
    for members, shared in sharings(data, rows):
        own = [data.length(row) - shared for row in members]
        groups = first_fit_decreasing(own, token_budget - shared)
        units += [_Unit([members[i] for i in group], shared + sum(own[i] for i in group)) for group in groups]
    return units


def evaluation_sample(num_examples: int, sample_size: int, seed: int) -> list[int]:
    """The fixed validation rows of a run, ascending; all of them where there are no more than `sample_size`."""
    if num_examples <= sample_size:
        return list(range(num_examples))
    return sorted(int(row) for row in shuffled(num_examples, seed, "validation")[:sample_size])


def evaluation_batches(data: Dataset, rows: list[int], token_budget: int) -> Iterator[list[int]]:
    for first in range(0, len(rows), _EVALUATION_GROUP):
        yield from micro_batches(data, rows[first : first + _EVALUATION_GROUP], token_budget)


def check_data(data: Dataset, *, vocab_size: int, max_sequence_tokens: int, param: str) -> None:
    """Refuse token files that the model cannot take.

    Preparation has refused bad rows with their line numbers; what is found here is a fault between
    the two, and on CUDA an id out of range would end the process without a word.
    """
    if len(data) == 0:
        raise TrainError("empty_file", "The file has no examples.", param=param)
    problem = None
    if longest(data) > max_sequence_tokens:
        problem = f"An example has {longest(data)} tokens, more than the run's limit of {max_sequence_tokens}."
    elif int(data.tokens.max()) >= vocab_size:
        problem = f"A token id is outside of the model's vocabulary of {vocab_size}."
    if problem is not None:
        raise TrainError("invalid_token_file", problem, param=param, blame=Blame.INTERNAL)


def longest(data: Dataset) -> int:
    """The most tokens that the model sees as one sequence."""
    return data.longest_sequence()


def fingerprint(data: Dataset) -> str:
    """A hash of the examples, by which a checkpoint knows the data it belongs to."""
    digest = hashlib.sha256()
    for array in data.arrays():
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
