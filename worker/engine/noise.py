"""NEFTune: uniform noise on the embeddings of training examples (arXiv:2310.05914).

A document of L tokens in H dimensions gets noise between -alpha / sqrt(L H) and alpha / sqrt(L H), on what
the model's embedding layer returns. It is drawn on the CPU from (seed, step, example) alone: the same on
every device, after a resume, and in whatever pack and place the example lies.

Shapes: T tokens of a micro-batch, L of one document, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from worker.contract.errors import TrainError
from worker.contract.spec import TrainSpec
from worker.engine.seeds import derive


@dataclass(frozen=True)
class Noise:
    """The noise of one micro-batch, with a seed for each of its documents."""

    alpha: float
    seeds: tuple[int, ...]

    def sample(self, bounds: tuple[int, ...], hidden: int) -> torch.Tensor:
        """[T, H], float32."""
        parts = []
        for (start, end), seed in zip(pairwise(bounds), self.seeds, strict=True):
            size = self.alpha / ((end - start) * hidden) ** 0.5
            generator = torch.Generator().manual_seed(seed)
            parts.append(torch.empty(end - start, hidden).uniform_(-size, size, generator=generator))
        return torch.cat(parts)


def check(spec: TrainSpec) -> None:
    """TrainError for a method that has no noise: it is defined and was shown to help for supervised training."""
    if spec.neftune_noise_alpha > 0 and spec.method != "supervised":
        raise TrainError(
            "unsupported_noise",
            f"'hone.neftune_noise_alpha' is for the method 'supervised', but the method is '{spec.method}'.",
            param="hone.neftune_noise_alpha",
        )


def neftune(alpha: float, seed: int, step: int, examples: Sequence[int]) -> Noise | None:
    """The noise of these examples in this step; None where `alpha` is 0."""
    if alpha == 0:
        return None
    return Noise(alpha, tuple(derive(seed, "noise", step, example) for example in examples))
