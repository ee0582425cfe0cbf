"""Where the documents of one packed row lie, and which of them others continue.

Shapes: D documents, T tokens of the row, S keys that one document or all of them see, L tokens of one document,
R positions that are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import torch

from worker.engine.transfer import onto

Span = tuple[int, int]  # tokens of the row, from the first to before the last


@dataclass(frozen=True)
class SharedPrefixes:
    """Of each document the tokens before it that it sees besides its own, start and end; equal where it has none.

    `runs` are the same put together: a prefix, and neighbours that all continue it. `keys_S` are the keys that
    the documents see, one document after the other, each prefix first.
    """

    spans: tuple[Span, ...]  # D
    runs: tuple[tuple[Span, Span], ...]
    keys_S: torch.Tensor  # int64, on the device
    offsets_D1: torch.Tensor  # int32, on the device: where each document's part of `keys_S` begins
    longest: int


@dataclass(frozen=True)
class Documents:
    """The bounds of a row's documents, and what all its layers need of them, computed once.

    `layers_served` collects the layers that really used these bounds: a layer that mixes tokens in
    another way (a convolution, a recurrence, its own attention) is missing from it.
    """

    bounds: tuple[int, ...]  # D + 1 offsets, from 0 to T
    offsets_D1: torch.Tensor  # the same, int32, on the device
    longest: int
    shared: SharedPrefixes | None = None  # None where every document stands alone
    read_R: torch.Tensor | None = None  # int64, on the device: where the last hidden states are read; None: everywhere
    layers_served: set[int] = field(default_factory=set)
    _masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        return [end - start for start, end in pairwise(self.bounds)]

    @property
    def prefix_spans(self) -> tuple[Span, ...]:
        return self.shared.spans if self.shared is not None else ((0, 0),) * (len(self.bounds) - 1)

    @property
    def longest_seen(self) -> int:
        """The most keys that a document sees."""
        return self.longest if self.shared is None else self.shared.longest

    def mask(self, length: int, prefix: int, window: int | None) -> torch.Tensor:
        """Which of S keys each of the last L of them sees, bool[L, S]; made once for all layers that ask."""
        key = (length, prefix, window)
        if key not in self._masks:
            ones_LS = torch.ones(length, prefix + length, dtype=torch.bool, device=self.offsets_D1.device)
            seen_LS = ones_LS.tril(prefix)
            self._masks[key] = seen_LS if window is None else seen_LS.triu(prefix + 1 - window)
        return self._masks[key]


def documents_of(
    bounds: tuple[int, ...],
    device: torch.device,
    prefixes: Sequence[int | None] | None = None,
    read_R: torch.Tensor | None = None,
) -> Documents:
    """`prefixes` names for each document the one that it continues, which continues none itself."""
    lengths = [end - start for start, end in pairwise(bounds)]
    shared = None if prefixes is None else _shared_prefixes(bounds, prefixes, device)
    return Documents(bounds, onto(device, torch.tensor(bounds, dtype=torch.int32)), max(lengths), shared, read_R)


def _shared_prefixes(bounds: tuple[int, ...], prefixes: Sequence[int | None], device: torch.device) -> SharedPrefixes:
    assert len(prefixes) == len(bounds) - 1
    spans = tuple((0, 0) if prefix is None else (bounds[prefix], bounds[prefix + 1]) for prefix in prefixes)
    keys: list[int] = []
    offsets = [0]
    for span, own in zip(spans, pairwise(bounds), strict=True):
        keys += [*range(*span), *range(*own)]
        offsets.append(len(keys))
    return SharedPrefixes(
        spans=spans,
        runs=_runs(bounds, prefixes),
        keys_S=onto(device, torch.tensor(keys)),
        offsets_D1=onto(device, torch.tensor(offsets, dtype=torch.int32)),
        longest=max(end - start for start, end in pairwise(offsets)),
    )


def _runs(bounds: tuple[int, ...], prefixes: Sequence[int | None]) -> tuple[tuple[Span, Span], ...]:
    found = []
    for prefix, group in groupby(range(len(prefixes)), key=lambda document: prefixes[document]):
        documents = list(group)
        if prefix is not None:
            found.append(((bounds[prefix], bounds[prefix + 1]), (bounds[documents[0]], bounds[documents[-1] + 1])))
    return tuple(found)
