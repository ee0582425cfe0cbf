"""`calculate_output` of a multi grader: numbers, the graders' names, + - * / ^, brackets and a few functions.

A parser of its own, because a formula comes from anybody: nothing is looked up but the given names, all numbers
are floats, and length and depth are limited. `^` binds tighter than a sign before it and groups to the right;
`log` is the natural logarithm.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn

from worker.graders.faults import GraderFault

_MOST_DEPTH = 50
_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORD = re.compile(r"[^\W\d]\w*")
_SYMBOLS = frozenset("+-*/^(),")

Values = Mapping[str, float]
Node = Callable[[Values], float]

_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": lambda *values: min(values),
    "max": lambda *values: max(values),
    "abs": lambda value: abs(value),
    "floor": lambda value: float(math.floor(value)),  # a float: powers of Python's integers have no limit
    "ceil": lambda value: float(math.ceil(value)),
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_ANY_NUMBER_OF_ARGUMENTS = ("min", "max")


@dataclass(frozen=True)
class Formula:
    names: frozenset[str]
    node: Node

    def __call__(self, values: Values) -> float:
        """The formula's value, a finite number. Raises GraderFault where it has none."""
        return _evaluate(self.node, values)


def parse(text: str, names: Collection[str]) -> Formula:
    """Raises GraderFault: `formula_parse_error`, or `invalid_variable_error` for what is not among the names."""
    parser = _Parser(text, names)
    node = parser.sum()
    parser.expect_end()
    return Formula(frozenset(parser.used), node)


def _fail(sentence: str) -> NoReturn:
    raise GraderFault(f"The formula of calculate_output {sentence}.", "formula_parse_error")


def _evaluate(node: Node, values: Values) -> float:
    try:
        value = node(values)
    except ZeroDivisionError:
        _fail("divides by zero")
    except OverflowError:
        _fail("has a value that is too large")
    except (ValueError, TypeError):  # such as the square root of -1; a power of it would be complex
        _fail("has no real value")
    if isinstance(value, complex) or not math.isfinite(value):
        _fail("has no finite real value")
    return float(value)


@dataclass(frozen=True)
class _Token:
    kind: str  # "number", "name", "word", "end", or the symbol itself
    text: str
    position: int


def _tokens(text: str, names: Collection[str]) -> list[_Token]:
    # Names may hold spaces and hyphens: the longest that fits here is meant. None ends in the middle of a word.
    longest_first = sorted(names, key=len, reverse=True)
    alternatives = "|".join(re.escape(name) for name in longest_first)
    known = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)") if names else None
    found: list[_Token] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        for kind, pattern in (("name", known), ("number", _NUMBER), ("word", _WORD)):
            match = pattern.match(text, at) if pattern else None
            if match:
                found.append(_Token(kind, match.group(), at))
                at = match.end()
                break
        else:
            if text[at] not in _SYMBOLS:
                _fail(f"has an unexpected character at position {at + 1}")
            found.append(_Token(text[at], text[at], at))
            at += 1
    return [*found, _Token("end", "", len(text))]


class _Parser:
    """Recursive descent, one method for each level of precedence. What holds no name is computed at once, so that
    `1 / 0` is found before any sample is graded."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        self._tokens = _tokens(text, names)
        self._next = 0
        self._depth = 0
        self.used: set[str] = set()

    def sum(self) -> Node:
        first, rest = self._product(), []
        while self._token.kind in ("+", "-"):
            rest.append((self._take().kind, self._product()))
        return _chain(first, rest)

    def expect_end(self) -> None:
        if self._token.kind != "end":
            self._unexpected()

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._token
        self._next += 1
        return token

    def _expect(self, kind: str) -> None:
        if self._token.kind != kind:
            self._unexpected()
        self._next += 1

    def _unexpected(self) -> NoReturn:
        token = self._token
        what = "ends too early" if token.kind == "end" else f"is not understood at position {token.position + 1}"
        _fail(what)

    def _product(self) -> Node:
        first, rest = self._signed(), []
        while self._token.kind in ("*", "/"):
            rest.append((self._take().kind, self._signed()))
        return _chain(first, rest)

    def _signed(self) -> Node:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            _fail("is nested too deeply")
        if self._token.kind in ("+", "-"):
            symbol, inner = self._take().kind, self._signed()
            node = inner if symbol == "+" else _applied(lambda value: -value, [inner])
        else:
            node = self._power()
        self._depth -= 1
        return node

    def _power(self) -> Node:
        base = self._atom()
        if self._token.kind != "^":
            return base
        self._take()
        return _chain(base, [("^", self._signed())])

    def _atom(self) -> Node:
        token = self._token
        if token.kind == "number":
            return _Constant(float(self._take().text))
        if token.kind == "(":
            self._take()
            node = self.sum()
            self._expect(")")
            return node
        if token.text in _FUNCTIONS and self._tokens[self._next + 1].kind == "(":
            return self._call()
        if token.kind == "name":
            self.used.add(self._take().text)
            return lambda values: values[token.text]
        if token.kind != "word":
            self._unexpected()
        sentence = f"The formula of calculate_output names '{token.text[:64]}', which is no grader of this one."
        raise GraderFault(sentence, "invalid_variable_error")

    def _call(self) -> Node:
        name = self._take().text
        self._expect("(")
        arguments = [self.sum()]
        while self._token.kind == ",":
            self._take()
            arguments.append(self.sum())
        self._expect(")")
        if len(arguments) > 1 and name not in _ANY_NUMBER_OF_ARGUMENTS:
            _fail(f"gives {name} {len(arguments)} arguments, which takes one")
        return _applied(_FUNCTIONS[name], arguments)


@dataclass(frozen=True)
class _Constant:
    value: float

    def __call__(self, _values: Values) -> float:
        return self.value


_OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": lambda a, b: a**b,
}


def _chain(first: Node, rest: list[tuple[str, Node]]) -> Node:
    """Operations from left to right, in a loop: their number is no depth."""
    if not rest:
        return first
    if any(symbol == "/" and operand == _Constant(0.0) for symbol, operand in rest):
        _fail("divides by zero")

    def node(values: Values) -> float:
        total = first(values)
        for symbol, operand in rest:
            total = _OPERATIONS[symbol](total, operand(values))
        return total

    return _folded(node, [first, *(operand for _, operand in rest)])


def _applied(function: Callable[..., float], arguments: list[Node]) -> Node:
    def node(values: Values) -> float:
        return function(*(argument(values) for argument in arguments))

    return _folded(node, arguments)


def _folded(node: Node, operands: list[Node]) -> Node:
    if all(isinstance(operand, _Constant) for operand in operands):
        return _Constant(_evaluate(node, {}))
    return node
