"""What is found wrong with a Python grader's source before it runs."""

import pytest

from worker.graders import check
from worker.graders.faults import GraderFault


@pytest.mark.parametrize(
    "source",
    [
        "def grade(sample, item): return 1",
        "def grade(sample, item, *, strict=False): return 1",
        "def grade(*anything): return 1",
        "grade = lambda sample, item: 1",
        "from math import hypot as grade",
        "class grade:\n    def __init__(self, a, b): pass",
        "x = '\\d'\ndef grade(sample, item): return 1",
    ],
)
def test_good_sources(source: str) -> None:
    check.source(source)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("", "must define a function grade"),
        ("def score(sample, item): return 1", "must define a function grade"),
        ("if True:\n    def grade(sample, item): return 1", "must define a function grade"),
        ("def grade(sample): return 1", "two arguments"),
        ("def grade(a, b, c): return 1", "two arguments"),
        ("async def grade(sample, item): return 1", "two arguments"),
        ("x = 1\ndef grade(:", r"line 2"),
        ("(" * 10_000, "not valid Python"),
        ("-" * 10_000 + "1", "not valid Python"),
    ],
)
def test_bad_sources(source: str, sentence: str) -> None:
    with pytest.raises(GraderFault, match=sentence):
        check.source(source)


def test_a_long_source_is_left_to_the_sandbox() -> None:
    broken = "def grade(:"
    check.source(broken + "#" * (check.MAX_PARSED_BYTES + 1 - len(broken)))
    with pytest.raises(GraderFault, match="not valid Python"):
        check.source(broken + "#" * (check.MAX_PARSED_BYTES - len(broken)))
