"""Seeded examples of which some begin alike: behind two system prompts, or one that goes on from the first."""

from pathlib import Path

from tests.engine.examples import Example, load_examples, random_examples
from worker.data.token_file import TokenFile

FIRST, SECOND, NESTED = 20, 17, 24  # tokens in common, all more than the windows of the tests' families


def sharing_examples() -> list[Example]:
    """3 behind the first prompt, 2 behind the second, 2 equal ones, 2 behind first and nested, 3 alone; mixed.

    One row has no trained token, one is trained from the second token behind its prompt on.
    """
    first, second, nested = (_tokens(length, seed) for seed, length in enumerate((FIRST, SECOND, NESTED)))
    own = random_examples(12, seed=5, shortest=4, longest=18)
    begun = [
        *(_behind(first, example) for example in own[:3]),
        *(_behind(second, example) for example in own[3:5]),
        _behind(second, own[5]),
        _behind(second, own[5]),
        *(_behind([*first, *nested], example) for example in own[6:8]),
        *own[8:11],
    ]
    begun[1] = (begun[1][0], [0.0] * len(begun[1][0]))
    begun[4] = (begun[4][0], [0.0] * (SECOND + 1) + [1.0] * (len(begun[4][0]) - SECOND - 1))
    return [begun[place] for place in (0, 9, 3, 5, 7, 1, 10, 4, 6, 8, 2, 11)]


def load_sharers(path: Path) -> TokenFile:
    return load_examples(path, sharing_examples())


def _tokens(length: int, seed: int) -> list[int]:
    return random_examples(1, seed=100 + seed, shortest=length, longest=length)[0][0]


def _behind(prompt: list[int], example: Example) -> Example:
    tokens, weights = example
    return [*prompt, *tokens], [*[0.0] * len(prompt), *weights]
