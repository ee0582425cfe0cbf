"""Beginnings that several examples have in common, such as a system prompt: found by their tokens, computed once.

Each continuation then attends to the one computation of the common tokens (engine/attention.py), which is exact: a
token's state depends on nothing after it, and what flows back from all continuations adds up.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from worker.contract.spec import TrainSpec
from worker.data.token_file import TokenFile
from worker.engine import rotary

# Shorter ones are computed with each example: they save less than it costs to put attention together again.
MIN_SHARED_TOKENS = 16


class Sharing(NamedTuple):
    """Rows whose first `shared` tokens are the same; 0 for a row by itself."""

    rows: tuple[int, ...]
    shared: int


def can_be_shared(model: PreTrainedModel, spec: TrainSpec) -> bool:
    """Whether one computation of a prefix may serve several continuations.

    Not where anything random is drawn for each token: apart, they would draw apart. Nor where positions
    are encoded by the length of the example that they are in.
    """
    if rotary.depends_on_length(model):
        return False
    config = model.config.get_text_config()
    draws = [getattr(config, name, 0) for name in ("attention_dropout", "attention_probs_dropout_prob")]
    draws += [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    return not any([*draws, spec.lora.dropout, spec.neftune_noise_alpha])


def sharings(data: TokenFile, rows: Sequence[int]) -> list[Sharing]:
    """The given rows, each in one sharing, so that the fewest tokens are computed; in the order of their first rows.

    What is shared ends before the token that predicts a row's first trained one, so that every row keeps its own
    targets and what they are predicted from. Rows are put into the order of their tokens, where those with a
    common beginning are neighbours. Any of the rows by themselves would save at least what they save together here.
    """
    if not data.shares_prefixes:
        return [Sharing((row,), 0) for row in rows]
    heads = [data.tokens[start : start + length] for start, length in (_head(data, row) for row in rows)]
    order = sorted(range(len(rows)), key=lambda place: heads[place].astype(">i4").tobytes())
    common = [_common(heads[one], heads[other]) for one, other in pairwise(order)]
    found = []
    for first, end in _segments(common):
        places = sorted(order[first:end])
        shared = min(common[first : end - 1], default=0)
        found.append((places[0], Sharing(tuple(rows[place] for place in places), shared)))
    return [sharing for _place, sharing in sorted(found)]


def _head(data: TokenFile, row: int) -> tuple[int, int]:
    """Where a row begins, and how many of its tokens may be shared."""
    start, end = int(data.offsets[row]), int(data.offsets[row + 1])
    trained = np.nonzero(data.weights[start:end])[0]
    return start, max(0, int(trained[0] if len(trained) else end - start) - 1)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    different = np.nonzero(one[:length] != other[:length])[0]
    return int(different[0]) if len(different) else length


def _segments(common: Sequence[int]) -> list[tuple[int, int]]:
    """Cuts a row of neighbours, of which each two have so many tokens in common, where that saves most in all.

    Found from the front: what is best up to an end is what is best up to some beginning, and the segment between.
    """
    best = [0]
    begins = [0]
    for end in range(1, len(common) + 2):
        saved, begin, shared = best[end - 1], end - 1, None
        for first in range(end - 2, -1, -1):
            shared = common[first] if shared is None else min(shared, common[first])
            if shared < MIN_SHARED_TOKENS:
                break
            here = best[first] + shared * (end - first - 1)
            if here > saved:
                saved, begin = here, first
        best.append(saved)
        begins.append(begin)
    segments = []
    end = len(common) + 1
    while end > 0:
        segments.append((begins[end], end))
        end = begins[end]
    return segments[::-1]
