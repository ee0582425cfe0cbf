"""Token files: the encoded examples of one dataset, as the trainer reads them.

A safetensors file with three arrays: `tokens` int32[T] and `weights` float32[T] of all examples end
to end, and `offsets` int64[N + 1], so that example i is `tokens[offsets[i]:offsets[i + 1]]`. A weight
is the share of that token, as a target, in the loss: 0 for context, 1 for a trained token. The first
token of an example is never a target, so its weight is 0.
"""

import os
import uuid
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

DTYPES = {"tokens": np.dtype(np.int32), "weights": np.dtype(np.float32), "offsets": np.dtype(np.int64)}


class TokenFileError(Exception):
    """The file is missing, is not a token file, or its arrays contradict each other."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """All examples of a dataset; `tokens` int32[T], `weights` float32[T], `offsets` int64[N + 1].

    `shares_prefixes` is the trainer's choice, not the file's: that a pack holds a common beginning once.
    """

    tokens: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    shares_prefixes: bool = False

    @classmethod
    def load(cls, path: str | Path) -> "TokenFile":
        """Read and check a token file; TokenFileError if it is not whole and consistent."""
        arrays = read_arrays(path, DTYPES)
        problem = inconsistency(arrays["tokens"], arrays["weights"], arrays["offsets"])
        if problem is not None:
            raise TokenFileError(f"{path}: {problem}")
        return cls(tokens=arrays["tokens"], weights=arrays["weights"], offsets=arrays["offsets"])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def example(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Views of the tokens int32[t] and weights float32[t] of example `index`, 0 <= index < N."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.tokens[start:end], self.weights[start:end]

    def length(self, index: int) -> int:
        """The tokens that an example takes in a pack, if it shares none of them."""
        return int(self.offsets[index + 1] - self.offsets[index])

    def longest_sequence(self) -> int:
        return int(np.diff(self.offsets).max())

    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that the file says."""
        return self.tokens, self.weights, self.offsets


def write(path: str | Path, examples: Iterable[tuple[Sequence[int], Sequence[float]]]) -> None:
    """Write (token ids, weights) pairs of equal, non-zero length; the file appears whole or not at all.

    ValueError if a pair breaks a rule of the format.
    """
    arrays = collect(examples)
    problem = inconsistency(arrays["tokens"], arrays["weights"], arrays["offsets"])
    if problem is not None:
        raise ValueError(problem)
    save_arrays(path, arrays)


def collect(examples: Iterable[tuple[Sequence[int], Sequence[float]]]) -> dict[str, np.ndarray]:
    """The arrays of a token file; ValueError if an example has other weights than tokens."""
    # 8 bytes a token while collecting; lists of Python objects would need ten times that.
    tokens, weights, offsets = array("i"), array("f"), array("q", [0])
    for example_tokens, example_weights in examples:
        tokens.extend(example_tokens)
        weights.extend(example_weights)
        if len(tokens) != len(weights):
            raise ValueError(f"example {len(offsets) - 1} has {len(example_tokens)} tokens but other weights")
        offsets.append(len(tokens))
    return {
        "tokens": np.frombuffer(tokens, dtype=np.int32),
        "weights": np.frombuffer(weights, dtype=np.float32),
        "offsets": np.frombuffer(offsets, dtype=np.int64),
    }


def read_arrays(path: str | Path, dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    """The arrays of a file that must hold exactly those of `dtypes`; TokenFileError if it does not."""
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TokenFileError(f"{path} is not a readable token file: {error}") from error
    if set(arrays) != set(dtypes):
        raise TokenFileError(f"{path} holds {sorted(arrays)}, not {sorted(dtypes)}")
    return arrays


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a file that appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        save_file(arrays, partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def inconsistency(tokens: np.ndarray, weights: np.ndarray, offsets: np.ndarray) -> str | None:
    """What is wrong with the three arrays, or None."""
    for name, values in (("tokens", tokens), ("weights", weights), ("offsets", offsets)):
        if values.ndim != 1 or values.dtype != DTYPES[name]:
            return f"{name} is {values.dtype}{list(values.shape)}, not {DTYPES[name]}[n]"
    if len(tokens) != len(weights):
        return f"{len(tokens)} tokens but {len(weights)} weights"
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(tokens):
        return "the offsets do not span the tokens"
    if np.any(np.diff(offsets) <= 0):
        return "an example is empty or the offsets fall"
    if np.any(tokens < 0):
        return "a token id is negative"
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        return "a weight is negative or not finite"
    if np.any(weights[offsets[:-1]] != 0):
        return "the first token of an example has a weight"
    return None
