"""What the GPU benchmark trains on: random tokens, all of them trained, so that no product is left out."""

import random
from dataclasses import dataclass

from benchmarks import presets
from benchmarks.presets import Example


@dataclass(frozen=True)
class Shape:
    """`longest` tokens in each example, or as many at most where lengths are log-normal around `mean`."""

    longest: int
    mean: int | None = None


_REAL = {"2k": Shape(2048), "4k": Shape(4096), "packed": Shape(4096, mean=700)}
_TINY = {"2k": Shape(64), "4k": Shape(128), "packed": Shape(128, mean=40)}


def shapes(*, tiny: bool) -> dict[str, Shape]:
    return _TINY if tiny else _REAL


def examples(shape: Shape, *, tokens: int, vocab_size: int) -> list[Example]:
    """Examples of `tokens` tokens in all, or a little more; the first token of each has nothing that predicts it."""
    source = random.Random(0)
    made: list[Example] = []
    total = 0
    while total < tokens:
        length = shape.longest
        if shape.mean is not None:
            drawn = presets.lognormal_examples(1, vocab_size=2, seed=len(made), mean=shape.mean, longest=shape.longest)
            length = len(drawn[0][0])
        made.append(([source.randrange(vocab_size) for _ in range(length)], [0.0] + [1.0] * (length - 1)))
        total += length
    return made
