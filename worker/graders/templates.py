"""`{{ item.x }}` and `{{ sample.output_text }}` in graders: paths into JSON, and nothing that is evaluated."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import orjson

from worker.graders.faults import GraderFault

MAX_CHARACTERS = 1 << 20
MAX_PLACEHOLDERS = 1000
_PLACEHOLDER = re.compile(r"\{\{([^{}]{0,512})\}\}")
_STEP = re.compile(r"""\.([^\W\d][\w-]*|\d{1,9})|\[(\d{1,9})\]|\["([^"\]]*)"\]|\['([^'\]]*)'\]""")
_ROOT = re.compile(r"(item|sample\.output_text|sample\.output_json)(?=[.\[]|$)")
Step = str | int


@dataclass(frozen=True)
class Context:
    """What a sample is graded with. `item` is the row of the data set that it answers."""

    output_text: str
    item: Any

    @cached_property
    def output_json(self) -> Any:
        """Raises GraderFault when the sample is no JSON."""
        try:
            return orjson.loads(self.output_text)
        except ValueError as error:
            raise GraderFault(
                "The grader uses sample.output_json, but the sample is not valid JSON.", "sample_parse_error"
            ) from error


def check(template: str) -> None:
    """Raises GraderFault when a placeholder can never be filled, or there are too many."""
    for match in _placeholders(template):
        _parse(match.group(1).strip())


def fill(template: str, context: Context) -> str:
    """Replace each placeholder. Text stays as it is; anything else is written as JSON."""
    parts = []
    size = 0
    for part in _parts(template, context):
        size += len(part)
        if size > MAX_CHARACTERS:
            raise GraderFault("A text of the grader is too long once its variables are filled in.", "other_error")
        parts.append(part)
    return "".join(parts)


def _parts(template: str, context: Context) -> Iterator[str]:
    end = 0
    for match in _placeholders(template):
        yield template[end : match.start()]
        value = _look_up(match.group(1).strip(), context)
        yield value if isinstance(value, str) else _as_json(value)
        end = match.end()
    yield template[end:]


def _placeholders(template: str) -> Iterator[re.Match[str]]:
    for number, match in enumerate(_PLACEHOLDER.finditer(template), start=1):
        if number > MAX_PLACEHOLDERS:
            sentence = f"A text of the grader has more than {MAX_PLACEHOLDERS} variables."
            raise GraderFault(sentence, "other_error")
        yield match


def _look_up(path: str, context: Context) -> Any:
    root, steps = _parse(path)
    if root == "sample.output_text":
        value: Any = context.output_text
    else:
        value = context.item if root == "item" else context.output_json
    for step in steps:
        if isinstance(value, dict) and str(step) in value:
            value = value[str(step)]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            _fail(path, "names nothing that is there")
    return value


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError as error:
        raise GraderFault("A variable of the grader is nested too deeply.", "other_error") from error


def _parse(path: str) -> tuple[str, Sequence[Step]]:
    root = _ROOT.match(path)
    if root is None:
        _fail(path, "is no path that begins with item, sample.output_text or sample.output_json")
    steps: list[Step] = []
    at = root.end()
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None or root.group() == "sample.output_text":
            _fail(path, "is not a path to a value")
        name, index, *quoted = step.groups()
        text = name or index
        if text is None:
            steps.append(next(key for key in quoted if key is not None))
        else:
            steps.append(int(text) if text.isdecimal() and text.isascii() else text)
        at = step.end()
    return root.group(), steps


def _fail(path: str, trouble: str) -> NoReturn:
    raise GraderFault(f"The variable '{{{{ {path[:100]} }}}}' {trouble}.", "invalid_variable_error")
