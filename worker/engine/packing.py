"""Packing: several examples in one row, first-fit-decreasing, each with its own positions.

Shapes: T tokens of a micro-batch, N trained positions, D documents (examples, or prefixes that examples share).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worker.data.token_file import TokenFile
from worker.engine.noise import Noise
from worker.engine.prefixes import sharings


@dataclass(frozen=True)
class MicroBatch:
    """One packed row. Document d is tokens bounds[d]:bounds[d+1]; it sees only itself and its prefix.

    `sources_N` are the positions whose next token is trained; `targets_N` are these next tokens and
    `weights_N` their weights. `num_tokens` counts the tokens of each example, as if it stood alone. All tensors
    are on the CPU.
    """

    tokens_T: torch.Tensor  # int64
    positions_T: torch.Tensor  # int64, from 0 in each document, or on from its prefix
    bounds: tuple[int, ...]  # D + 1 offsets, from 0 to T
    sources_N: torch.Tensor  # int64, ascending
    targets_N: torch.Tensor  # int64
    weights_N: torch.Tensor  # float32, above zero
    num_tokens: int
    noise: Noise | None = None  # on the embeddings
    prefixes: tuple[int | None, ...] | None = None  # for each document the one it continues; None: they all stand alone


def first_fit_decreasing(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `token_budget` tokens; a longer one gets a bin of its own.

    Longest first, equal lengths in the given order, so the result is a pure function of the arguments.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        for number, free in enumerate(room):
            if length <= free:
                bins[number].append(index)
                room[number] -= length
                break
        else:
            bins.append([index])
            room.append(token_budget - length)
    return bins


def pack(data: TokenFile, rows: Sequence[int], noise: Noise | None = None) -> MicroBatch:
    """Put the given rows of a token file into one micro-batch: those that share a prefix one after the other behind it.

    Noise is drawn for each row, in the given order, so it comes with data that shares nothing.
    """
    documents = _documents(data, rows)
    assert noise is None or len(documents) == len(rows)
    tokens = np.concatenate([data.tokens[document.start : document.end] for document in documents])
    weights = np.concatenate([data.weights[document.start : document.end] for document in documents])
    positions = np.concatenate([np.arange(document.end - document.start) + document.offset for document in documents])
    bounds = np.concatenate([[0], np.cumsum([document.end - document.start for document in documents])])
    # An example's first token has nothing before it in its document, so it is never a target.
    targets = np.nonzero((weights > 0) & (positions > 0))[0]
    shares = any(document.prefix is not None for document in documents)
    return MicroBatch(
        tokens_T=torch.from_numpy(tokens.astype(np.int64)),
        positions_T=torch.from_numpy(positions.astype(np.int64)),
        bounds=tuple(int(bound) for bound in bounds),
        sources_N=torch.from_numpy(targets.astype(np.int64) - 1),
        targets_N=torch.from_numpy(tokens[targets].astype(np.int64)),
        weights_N=torch.from_numpy(weights[targets].astype(np.float32)),
        num_tokens=sum(data.length(row) for row in rows),
        noise=noise,
        prefixes=tuple(document.prefix for document in documents) if shares else None,
    )


@dataclass(frozen=True)
class _Document:
    """Tokens of the file, from `start` to before `end`; `offset` is the position of the first in its example."""

    start: int
    end: int
    offset: int = 0
    prefix: int | None = None  # the number of the document that it continues


def _documents(data: TokenFile, rows: Sequence[int]) -> list[_Document]:
    documents: list[_Document] = []
    for sharing in sharings(data, rows):
        prefix = None
        if sharing.shared > 0:
            start = int(data.offsets[sharing.rows[0]])
            prefix = len(documents)
            documents.append(_Document(start, start + sharing.shared))
        for row in sharing.rows:
            start, end = int(data.offsets[row]), int(data.offsets[row + 1])
            documents.append(_Document(start + sharing.shared, end, sharing.shared, prefix))
    return documents
