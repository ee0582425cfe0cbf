"""Packing: several examples in one row, first-fit-decreasing, each with its own positions.

Shapes: T tokens of a micro-batch, N trained positions, D documents (examples).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worker.data.token_file import TokenFile
from worker.engine.noise import Noise


@dataclass(frozen=True)
class MicroBatch:
    """One packed row. Document d is tokens bounds[d]:bounds[d+1]; it sees only itself and its prefix.

    `sources_N` are the positions whose next token is trained; `targets_N` are these next tokens and
    `weights_N` their weights. All tensors are on the CPU.
    """

    tokens_T: torch.Tensor  # int64
    positions_T: torch.Tensor  # int64, from 0 in each document
    bounds: tuple[int, ...]  # D + 1 offsets, from 0 to T
    sources_N: torch.Tensor  # int64, ascending
    targets_N: torch.Tensor  # int64
    weights_N: torch.Tensor  # float32, above zero
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
    """Put the given rows of a token file one after the other into one micro-batch."""
    spans = [(int(data.offsets[row]), int(data.offsets[row + 1])) for row in rows]
    tokens = np.concatenate([data.tokens[start:end] for start, end in spans])
    weights = np.concatenate([data.weights[start:end] for start, end in spans])
    positions = np.concatenate([np.arange(end - start) for start, end in spans])
    bounds = np.concatenate([[0], np.cumsum([end - start for start, end in spans])])
    # A document's first token has nothing before it in its document, so it is never a target.
    targets = np.nonzero((weights > 0) & (positions > 0))[0]
    return MicroBatch(
        tokens_T=torch.from_numpy(tokens.astype(np.int64)),
        positions_T=torch.from_numpy(positions.astype(np.int64)),
        bounds=tuple(int(bound) for bound in bounds),
        sources_N=torch.from_numpy(targets.astype(np.int64) - 1),
        targets_N=torch.from_numpy(tokens[targets].astype(np.int64)),
        weights_N=torch.from_numpy(weights[targets].astype(np.float32)),
        noise=noise,
    )
