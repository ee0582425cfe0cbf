"""Lines of training files: a row or a sentence, whatever the bytes."""

import io
import json
import math
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from tests.hostile.fuzzing import fuzzed
from worker.contract.formats import FormatError, parse_preference, parse_row
from worker.data import rows

MAX_LINE_BYTES, MAX_ROWS = 2000, 20
_TOKENS = [
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\\u0000", b"\\ud800", b"\\udc00", b"\\uD83E\\uDD8A", b"null",
    b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"01", b"1.5", b"9" * 400, b"\n", b"\r\n", b"\r", b" ", b"\t",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf0\x9f\xa6\x8a", b"\xe2\x80\xa8",
    b'"messages"', b'"role"', b'"content"', b'"user"', b'"assistant"', b'"weight"', b'"tool_calls"', b"[" * 200,
    b'{"a":' * 150, b'{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}\n',
]  # fmt: skip
FILES = st.lists(st.sampled_from(_TOKENS) | st.binary(max_size=20), max_size=60).map(b"".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        2**70,
        math.inf,
        math.nan,
        "",
        "x",
        "\0",
        "user",
        "{",
        [],
        {},
        [None],
        [[]],
        [{}],
        {"": 0},
    ]
)
_WORD = st.sampled_from(["user", "assistant", "system", "developer", "tool", "wizard", "", "text", "function"])
_MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": _WORD | ODD,
        "content": st.text(max_size=8) | ODD | st.lists(st.fixed_dictionaries({"type": _WORD, "text": ODD})),
        "weight": st.sampled_from([0, 1, 0.0, 1.0, 2, -1, True, None, "1"]),
        "name": ODD,
        "tool_calls": ODD | st.lists(st.fixed_dictionaries({"id": ODD, "type": _WORD, "function": ODD}), max_size=2),
        "tool_call_id": ODD,
        "function_call": ODD,
        "refusal": ODD,
    },
)
_MESSAGES = st.lists(_MESSAGE, max_size=4) | ODD
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "messages": _MESSAGES,
        "tools": ODD,
        "prompt": ODD,
        "completion": ODD,
        "input": ODD | st.fixed_dictionaries({"messages": _MESSAGES}),
        "preferred_output": _MESSAGES,
        "non_preferred_output": _MESSAGES,
        "parallel_tool_calls": ODD,
    },
)


@fuzzed(300)
@given(content=FILES)
@example(content=b"")
@example(content=b"\xef\xbb\xbf")
@example(content=b'{"a": 1, "a": 2}')
@example(content=b'{"a": "\\ud800"}')
@example(content=b'{"a": 1e999}')
@example(content=b"[" * 1999)
@example(content=b'{"a": ' + b"9" * 1990 + b"}")
def test_any_bytes_are_rows_or_sentences(content: bytes) -> None:
    found = list(rows.read_rows(io.BytesIO(content), max_rows=MAX_ROWS, max_line_bytes=MAX_LINE_BYTES))
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    for number, row in found:
        assert number >= 1
        if isinstance(row, FormatError):
            assert len(row.sentence(number)) < 400
        else:
            assert_plain(row)
    refusal = rows.check_jsonl(io.BytesIO(content), max_line_bytes=MAX_LINE_BYTES)
    assert refusal is None or len(refusal) < 400
    # Whoever is refused at the upload would have been refused by the job; not the other way around, and not what
    # lies behind the last row that is read.
    if refusal is not None and len(found) <= MAX_ROWS:
        assert not found or any(isinstance(row, FormatError) for _, row in found)


@fuzzed(100)
@given(row=ROWS)
@example(row={"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]})
@example(row={"messages": [{"role": "assistant", "content": "x", "weight": math.nan}]})
def test_any_object_is_an_example_or_a_sentence(row: dict[str, Any]) -> None:
    for parse in (parse_row, parse_preference):
        try:
            parse(row)
        except FormatError as refused:
            assert len(refused.sentence(1)) < 600
            assert refused.field is None or len(refused.field) < 300


def assert_plain(value: dict[str, Any]) -> None:
    """No two parsers read it differently."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    text.encode("utf-8")
    assert json.loads(text) == value
