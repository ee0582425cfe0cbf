"""Pair files: the encoded preference pairs of one dataset, as the trainer reads them.

A token file in which an example is a whole pair, prompt, chosen and rejected answer end to end, with one
array more: `answers` int64[N, 2] says how many tokens into its pair each answer begins. Both answers follow
the same prompt tokens; an answer's first token is predicted at the prompt's last. The prompt's weights are 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worker.data import token_file
from worker.data.token_file import TokenFileError

DTYPES = {**token_file.DTYPES, "answers": np.dtype(np.int64)}

Answer = tuple[Sequence[int], Sequence[float]]  # token ids and their weights


class Pair(NamedTuple):
    """Views: the prompt's tokens int32[p], and tokens int32[a] and weights float32[a] of the answers."""

    prompt: npt.NDArray[np.int32]
    chosen: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]
    rejected: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class PairFile:
    """All pairs of a dataset; `tokens` int32[T], `weights` float32[T], `offsets` int64[N + 1], `answers` int64[N, 2].

    `repeats_prompt` is the trainer's choice, not the file's: that a pack holds the prompt before each answer.
    """

    tokens: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    repeats_prompt: bool = False

    @classmethod
    def load(cls, path: str | Path) -> "PairFile":
        """Read and check a pair file; TokenFileError if it is not whole and consistent."""
        arrays = token_file.read_arrays(path, DTYPES)
        problem = _inconsistency(arrays)
        if problem is not None:
            raise TokenFileError(f"{path}: {problem}")
        return cls(arrays["tokens"], arrays["weights"], arrays["offsets"], arrays["answers"])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pair(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        chosen, rejected = (start + int(place) for place in self.answers[index])
        return Pair(
            prompt=self.tokens[start:chosen],
            chosen=(self.tokens[chosen:rejected], self.weights[chosen:rejected]),
            rejected=(self.tokens[rejected:end], self.weights[rejected:end]),
        )

    def num_tokens(self, index: int) -> int:
        """The tokens of a pair, its prompt counted once."""
        return int(self.offsets[index + 1] - self.offsets[index])

    def length(self, index: int) -> int:
        """The tokens that a pair takes in a pack."""
        return self.num_tokens(index) + (int(self.answers[index, 0]) if self.repeats_prompt else 0)

    def longest_sequence(self) -> int:
        """The most tokens of a prompt with one of its answers."""
        chosen, rejected = self.answers[:, 0], self.answers[:, 1]
        ends = np.diff(self.offsets)
        return int(np.maximum(rejected, chosen + ends - rejected).max())

    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that the file says."""
        return self.tokens, self.weights, self.offsets, self.answers


def write(path: str | Path, pairs: Iterable[tuple[Sequence[int], Answer, Answer]]) -> None:
    """Write (prompt, chosen, rejected); the file appears whole or not at all.

    ValueError if a pair breaks a rule of the format.
    """
    answers: list[tuple[int, int]] = []

    def examples() -> Iterable[Answer]:
        for prompt, (chosen, chosen_weights), (rejected, rejected_weights) in pairs:
            if len(chosen) != len(chosen_weights):
                raise ValueError(f"the chosen answer of pair {len(answers)} has other weights than tokens")
            answers.append((len(prompt), len(prompt) + len(chosen)))
            yield [*prompt, *chosen, *rejected], [*[0.0] * len(prompt), *chosen_weights, *rejected_weights]

    arrays = token_file.collect(examples())
    arrays["answers"] = np.array(answers, dtype=np.int64).reshape(-1, 2)
    problem = _inconsistency(arrays)
    if problem is not None:
        raise ValueError(problem)
    token_file.save_arrays(path, arrays)


def _inconsistency(arrays: dict[str, np.ndarray]) -> str | None:
    """What is wrong with the four arrays, or None."""
    weights, offsets, answers = arrays["weights"], arrays["offsets"], arrays["answers"]
    problem = token_file.inconsistency(arrays["tokens"], weights, offsets)
    if problem is not None:
        return problem
    if answers.dtype != DTYPES["answers"] or answers.shape != (len(offsets) - 1, 2):
        return f"answers is {answers.dtype}{list(answers.shape)}, not int64[{len(offsets) - 1}, 2]"
    chosen, rejected, end = answers[:, 0], answers[:, 1], np.diff(offsets)
    if np.any(chosen < 1) or np.any(rejected <= chosen) or np.any(end <= rejected):
        return "a pair lacks its prompt or an answer"
    # Trained tokens before each place of the file, by which each part of a pair is counted.
    trained = np.concatenate([[0], np.cumsum(weights > 0)])
    first, second, third, last = (trained[offsets[:-1] + place] for place in (0, chosen, rejected, end))
    if np.any(second > first):
        return "a prompt has a weight"
    if np.any(third == second) or np.any(last == third):
        return "an answer has no trained token"
    return None
