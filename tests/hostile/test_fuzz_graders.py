"""Graders' templates, formulas, sources, and what models answer: a value or a fault, and never for long."""

import json
import math
import string

from hypothesis import example, given
from hypothesis import strategies as st

from tests.hostile.fuzzing import fuzzed
from tests.hostile.test_fuzz_rows import JSON
from worker.contract.graders import ScoreModel
from worker.graders import check, formula, model_answers, templates
from worker.graders.faults import GraderFault
from worker.graders.templates import Context

_TEMPLATE = st.lists(
    st.sampled_from(
        ["{{", "}}", "{", "}", "item", "sample", ".", "output_text", "output_json", "[", "]", "'", '"', "0",
         "999999999",
         "x", "__class__", " ", "|", "(", ")", "\u0660", "\0", "ü", "-"]
    )
    | st.text(max_size=5),
    max_size=30,
).map("".join)  # fmt: skip
_FORMULA = st.lists(
    st.sampled_from(
        ["a", "b", "is it right", "(", ")", "+", "-", "*", "/", "^", ",", "min", "max", "abs", "exp", "sqrt", "log",
         "floor", "1", "0", "9e99", ".5", "1e308", " ", "\u0663", "\u00b2", "**", "__", "(" * 60, "-" * 60, "9^9^9"]
    )
    | st.text(max_size=3),
    max_size=25,
).map("".join)  # fmt: skip
NAMES = ["a", "b", "is it right", "min"]
MODEL = ScoreModel.model_validate(
    {"type": "score_model", "name": "m", "model": "x", "input": [{"role": "user", "content": "x"}], "range": [0, 1]}
)


@fuzzed(60)
@given(template=_TEMPLATE, item=JSON, output=st.text(max_size=20) | JSON.map(json.dumps))
@example(template="{{ item.999999999 }}", item=[], output="")
@example(template="{{ item[0] }}", item={"0": "\0"}, output="")
@example(template="{{ sample.output_json }}", item=None, output="[" * 5000)
@example(template="{{ item.\u00b2 }}", item={}, output="")
def test_templates(template: str, item: object, output: str) -> None:
    try:
        templates.check(template)
        is_good = True
    except GraderFault:
        is_good = False
    try:
        filled = templates.fill(template, Context(output, item))
    except GraderFault as fault:
        assert len(fault.sentence) < 400
        return
    assert is_good
    assert len(filled) <= templates.MAX_CHARACTERS


@fuzzed(150)
@given(text=_FORMULA, values=st.lists(st.floats(allow_nan=False), min_size=4, max_size=4))
@example(text="9^9^9^9", values=[0.0] * 4)
@example(text="\u00b2", values=[0.0] * 4)
@example(text="\u0663", values=[0.0] * 4)
@example(text="(-1)^.5*a", values=[math.inf] * 4)
@example(text="floor(a)", values=[math.inf] * 4)
@example(text="a^b", values=[1e300, 1e300, 0.0, 0.0])
def test_formulas(text: str, values: list[float]) -> None:
    try:
        value = formula.parse(text, NAMES)(dict(zip(NAMES, values, strict=True)))
    except GraderFault as fault:
        assert len(fault.sentence) < 400
        return
    assert isinstance(value, float)
    assert math.isfinite(value)


@fuzzed(60)
@given(
    source=st.lists(
        st.sampled_from(["def grade(sample, item):", "\n", " ", "\t", "(", "[", "not ", "return 1", "'", "\\", "\0",
        "f'{",
                         "lambda:", "class grade:", "async ", "\ud800", "-" * 300, "(" * 300, "x" * 50])
        | st.text(string.printable, max_size=10),
        max_size=30,
    ).map("".join)
)  # fmt: skip
@example(source="(" * 16_000)
@example(source="-" * 16_000 + "1")
@example(source="x=" + "a." * 8000 + "b")
@example(source="\ud800")
@example(source="\0")
def test_sources(source: str) -> None:
    try:
        check.source(source)
    except GraderFault as fault:
        assert len(fault.sentence) < 400


_CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "message": JSON | st.fixed_dictionaries({}, optional={"content": JSON | JSON.map(json.dumps), "refusal": JSON}),
        "finish_reason": JSON,
    },
)


@fuzzed(60)
@given(
    raw=st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {}, optional={"choices": JSON | st.lists(_CHOICE, max_size=2), "model": JSON, "usage": JSON}
    ).map(lambda value: json.dumps(value).encode()),
    status=st.sampled_from([200, 200, 200, 404, 500]),
)
@example(raw=b'{"choices": [{"message": {"content": "1e999"}}]}', status=200)
@example(raw=b'{"choices": [{"message": {"content": "{\\"result\\": true}"}}]}', status=200)
@example(raw=b"[" * 10_000, status=200)
def test_what_a_model_answers(raw: bytes, status: int) -> None:
    try:
        answer = model_answers.read(MODEL, status, raw)
    except GraderFault as fault:
        assert len(fault.sentence) < 400
        return
    assert 0 <= answer.reward <= 1
