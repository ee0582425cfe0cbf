"""Packing preference pairs: a prompt and its two answers are documents of one row, and the answers continue the prompt.

Shapes: T tokens of a micro-batch, N trained positions, P pairs, L tokens of one document.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from worker.data.pair_file import PairFile
from worker.engine.packing import MicroBatch


@dataclass(frozen=True)
class PairBatch:
    """One packed row of pairs. In `row.sources_N` a prompt's last position may stand twice, once for each answer.

    `answers_N` says whose token each trained position predicts: 2p is the chosen answer of pair p, 2p + 1 the
    rejected one. `row.num_tokens` counts each prompt once, also where the row repeats it.
    """

    row: MicroBatch
    answers_N: torch.Tensor  # int64
    num_pairs: int


@dataclass(frozen=True)
class _Document:
    tokens_L: npt.NDArray[np.int32]
    weights_L: npt.NDArray[np.float32]
    answer: int
    prefix: int | None  # the number of the prompt's document


def pack_pairs(data: PairFile, rows: Sequence[int]) -> PairBatch:
    """Put the given pairs one after the other into one micro-batch."""
    documents = _documents(data, rows)
    bounds = [0, *np.cumsum([len(document.tokens_L) for document in documents]).tolist()]
    tokens_T = np.concatenate([document.tokens_L for document in documents]).astype(np.int64)
    positions, sources, targets, weights, answers = [], [], [], [], []
    for start, document in zip(bounds, documents, strict=False):
        steps_L = np.arange(len(document.tokens_L))
        if document.prefix is None:
            positions.append(steps_L)
            continue
        prompt_start, prompt_end = bounds[document.prefix], bounds[document.prefix + 1]
        positions.append(prompt_end - prompt_start + steps_L)
        trained = np.nonzero(document.weights_L)[0]
        # An answer's first token is predicted where its prompt ends, wherever in the row that is.
        sources.append(np.where(trained == 0, prompt_end, start + trained) - 1)
        targets.append(start + trained)
        weights.append(document.weights_L[trained])
        answers.append(np.full(len(trained), document.answer))
    return PairBatch(
        row=MicroBatch(
            tokens_T=torch.from_numpy(tokens_T),
            positions_T=torch.from_numpy(np.concatenate(positions).astype(np.int64)),
            bounds=tuple(bounds),
            sources_N=torch.from_numpy(np.concatenate(sources).astype(np.int64)),
            targets_N=torch.from_numpy(tokens_T[np.concatenate(targets)]),
            weights_N=torch.from_numpy(np.concatenate(weights).astype(np.float32)),
            num_tokens=sum(data.num_tokens(row) for row in rows),
            prefixes=tuple(document.prefix for document in documents),
        ),
        answers_N=torch.from_numpy(np.concatenate(answers).astype(np.int64)),
        num_pairs=len(rows),
    )


def _documents(data: PairFile, rows: Sequence[int]) -> list[_Document]:
    """A prompt and the two answers that continue it, or each answer after a prompt of its own."""
    documents: list[_Document] = []
    for number, row in enumerate(rows):
        pair = data.pair(row)
        prompt = len(documents)
        for answer, (tokens_L, weights_L) in enumerate((pair.chosen, pair.rejected)):
            if answer == 0 or data.repeats_prompt:
                prompt = len(documents)
                documents.append(_Document(pair.prompt, np.zeros(len(pair.prompt), np.float32), -1, None))
            documents.append(_Document(tokens_L, weights_L, 2 * number + answer, prompt))
    return documents
