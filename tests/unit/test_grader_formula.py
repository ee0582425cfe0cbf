"""Formulas of multi graders: values worked out by hand, and what is refused."""

import math

import pytest

from worker.graders import formula
from worker.graders.faults import GraderFault

VALUES = {"a": 0.5, "b": 2.0, "fuzzy-match": 0.25, "is it right": 1.0, "min": 3.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 0.5),
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("7 - 3 - 2", 2.0),
        ("8 / 2 / 2", 2.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("-2 ^ 2", -4.0),
        ("2 ^ -1", 0.5),
        ("--2", 2.0),
        ("+a", 0.5),
        ("1.5e1 + .5", 15.5),
        ("0.7 * a + 0.3 * fuzzy-match", 0.425),
        ("is it right-a", 0.5),
        ("min(a, b, 1)", 0.5),
        ("max(a, b)", 2.0),
        ("min(min, 4)", 3.0),
        ("min", 3.0),
        ("abs(a - b)", 1.5),
        ("floor(2.9) + ceil(0.1)", 3.0),
        ("sqrt(b * 8)", 4.0),
        ("log(exp(3))", 3.0),
    ],
)
def test_values(text: str, value: float) -> None:
    assert formula.parse(text, VALUES)(VALUES) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        *("", "a +", "a b", "(a", "a)", "2..3", "a % b", "a; b", "abs(a, b)", "abs()", "min()", "a == b", "[a]"),
        *("a.__class__", "'a'", "a if b else a", "lambda: 1", "1 / 0", "a / 0", "a / (1 - 1)", "sqrt(-1)", "log(0)"),
        *("9 ^ 9 ^ 9 ^ 9", "(-8) ^ 0.5", "exp(1000)", "floor(10) ^ floor(999999)", "0 ^ -1", "1e999 - 1e999"),
        *("(" * 51 + "a" + ")" * 51, "-" * 60 + "a"),
    ],
)
def test_what_is_no_formula_is_refused_before_any_sample(text: str) -> None:
    with pytest.raises(GraderFault, match="formula") as caught:
        formula.parse(text, VALUES)
    assert caught.value.flags in (("formula_parse_error",), ("invalid_variable_error",))


def test_unknown_names_are_named() -> None:
    with pytest.raises(GraderFault, match="'c'") as caught:
        formula.parse("a + c", VALUES)
    assert caught.value.flags == ("invalid_variable_error",)


@pytest.mark.parametrize(("text", "a"), [("1 / a", 0.0), ("sqrt(a)", -1.0), ("a ^ 0.5", -8.0), ("exp(a)", 1e4)])
def test_a_formula_without_a_value_here_is_a_fault(text: str, a: float) -> None:
    calculate = formula.parse(text, ["a"])
    assert math.isfinite(calculate({"a": 1.0}))
    with pytest.raises(GraderFault, match="formula"):
        calculate({"a": a})


def test_length_is_no_depth() -> None:
    assert formula.parse("+".join(["a"] * 1024), ["a"])({"a": 1.0}) == 1024
