import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from worker.contract.formats import Fault, FormatError
from worker.data.rows import EMPTY_SENTENCE, MAX_DEPTH, UTF16_SENTENCE, check_jsonl, read_rows

A = b'{"a": 1}'
JSONL = "Expected file to have JSONL format, where every line is a JSON dictionary."


def read(data: bytes, max_rows: int = 100, max_line_bytes: int = 10_000) -> list[tuple[int, Any]]:
    found = read_rows(io.BytesIO(data), max_rows=max_rows, max_line_bytes=max_line_bytes)
    return [(line, value.what if isinstance(value, FormatError) else value) for line, value in found]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (A + b"\n" + A + b"\n", [1, 2]),
        (A + b"\n" + A, [1, 2]),
        (b"\xef\xbb\xbf" + A + b"\n" + A, [1, 2]),
        (A + b"\r\n" + A + b"\r\n", [1, 2]),
        (b"\n\r\n  \t\n" + A + b"\n\n" + A + b"\n\n", [4, 6]),
        (b"", []),
        (b"\n\n", []),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_line_endings_blank_lines_and_a_byte_order_mark(data: bytes, lines: list[int]) -> None:
    assert read(data) == [(line, {"a": 1}) for line in lines]


def test_zero_characters_and_long_pairs_are_text() -> None:
    assert read(rb'{"a": "\u0000 \ud83d\ude00"}') == [(1, {"a": "\x00 \U0001f600"})]


def test_brackets_in_strings_are_not_depth() -> None:
    text = "[{" * 5 * MAX_DEPTH + '"\\'
    data = b'{"a": "' + text.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"}'
    assert read(data) == [(1, {"a": text})]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"nonsense", "is not valid JSON: Expecting value at column 1"),
        (b'{"a": 1', "is not valid JSON"),
        (A + A, "is not valid JSON: Extra data"),
        (b'{"a": "\x01"}', "is not valid JSON: Invalid control character"),
        (b"[1]", "is not a JSON dictionary"),
        (b"null", "is not a JSON dictionary"),
        (b'"text"', "is not a JSON dictionary"),
        (b'{"a": "\xff"}', "is not valid UTF-8 (byte 8 of the line)"),
        (b'{"a": "\xed\xa0\x80"}', "is not valid UTF-8"),
        (rb'{"a": ["\ud800"]}', "has half of a surrogate pair"),
        (rb'{"\uDFFF": 1}', "has half of a surrogate pair"),
        (b'{"a": NaN}', "has NaN, which is not JSON"),
        (b'{"a": -Infinity}', "has -Infinity, which is not JSON"),
        (b'{"a": 1e999}', "has a number out of range: 1e999"),
        (b'{"a": -1e999}', "has a number out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "has a number with too many digits"),
        (b'{"messages": [], "messages": []}', 'has the key "messages" twice'),
        (b'{"a": [{"b": 1, "c": 2, "b": 1}]}', 'has the key "b" twice'),
        (b'{"a":' * 1500, "is nested more than 128 levels deep"),
        (b"[" * 9000, "is nested more than 128 levels deep"),
        (b'{"a": "' + b"x" * 10_000 + b'"}', "is longer than 10000 bytes"),
    ],
)
def test_bad_lines_are_named_and_the_next_is_read(line: bytes, said: str) -> None:
    first, bad, last = read(A + b"\n" + line + b"\n" + A)
    assert (first, last) == ((1, {"a": 1}), (3, {"a": 1}))
    assert bad[0] == 2
    assert bad[1].startswith(said)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wider_encodings_are_named_once(encoding: str) -> None:
    assert read('{"a": 1}\n{"a": 1}\n'.encode(encoding)) == [(1, UTF16_SENTENCE)]


def test_the_length_limit_counts_the_line_alone() -> None:
    for data in (A, A + b"\n", A + b"\r\n", b"\xef\xbb\xbf" + A + b"   \n", A + b" " * 99 + b"\n" + A):
        assert next(value for _, value in read(data, max_line_bytes=len(A))) == {"a": 1}
        assert read(data, max_line_bytes=len(A) - 1)[0] == (1, "is longer than 7 bytes")
    assert read(b" " * 99 + A + b"\n" + A, max_line_bytes=len(A)) == [(1, "is longer than 8 bytes"), (2, {"a": 1})]


def test_a_huge_line_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(b"{ ")
        file.seek(100_000_000)  # the rest is a hole, read as zeros
        file.write(b"\n" + A)
    tracemalloc.start()
    with path.open("rb") as file:
        found = list(read_rows(file, max_rows=10, max_line_bytes=1_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(line, str(value)) for line, value in found] == [(1, "is longer than 1000000 bytes"), (2, "{'a': 1}")]
    assert peak < 10_000_000


def test_more_rows_than_allowed_end_the_reading() -> None:
    found = list(read_rows(io.BytesIO((A + b"\n") * 1000), max_rows=3, max_line_bytes=100))
    assert len(found) == 4
    line, error = found[-1]
    assert line == 4
    assert isinstance(error, FormatError)
    assert (error.fault, error.what) == (Fault.FILE, "The file has more than 3 examples.")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (A, None),
        (b"\xef\xbb\xbf" + A + b"\r\n\r\n" + A, None),
        (rb'{"a": "\ud83d\ude00 \u0000"}', None),
        (b"", EMPTY_SENTENCE),
        (b" \n\n", EMPTY_SENTENCE),
        (b'{"prompt": 1', f'{JSONL} Line 1 is not a dictionary (HINT: line starts with: "{{"p...").'),
        (A + b"\n\n[1, 2]", f'{JSONL} Line 3 is not a dictionary (HINT: line starts with: "[1,...").'),
        (A + b"\n1\x07", f'{JSONL} Line 2 is not a dictionary (HINT: line starts with: "1?...").'),
        (b"prompt,completion", f'{JSONL} Line 1 is not a dictionary (HINT: line starts with: "pro...").'),
        (b'{"a": NaN}', f"{JSONL} Line 1 has NaN, which is not JSON."),
        (b'{"a": "\xff"}', f"{JSONL} Line 1 is not valid UTF-8 (byte 8 of the line)."),
        (b'{"a":' * 4000, f"{JSONL} Line 1 is nested more than 128 levels deep."),
        (A + b"\n" + b"x" * 30_000, f"{JSONL} Line 2 is longer than 20000 bytes."),
        ('{"a": 1}'.encode("utf-16"), UTF16_SENTENCE),
    ],
)
def test_the_check_at_upload(data: bytes, sentence: str | None) -> None:
    assert check_jsonl(io.BytesIO(data), max_line_bytes=20_000) == sentence
