"""Strict, streaming reading of JSONL: one dictionary a line, nothing in it that parsers disagree about.

Accepted: a byte order mark on line 1, CRLF, blank lines (they count as lines), a last line without a
newline, and `\\u0000` inside strings: text from the data goes to the tokenizer, never to the database.
Refused: duplicate keys, NaN and infinities, invalid UTF-8, lone surrogates, deep nesting, long lines.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from worker.contract.formats import Fault, FormatError

MAX_DEPTH = 128
BOM = b"\xef\xbb\xbf"
WHITESPACE = b" \t\r\n"
SKIP_BYTES = 1 << 16
HINT_CHARS = 3
UTF16_SENTENCE = "The file is encoded as UTF-16 or UTF-32, but must be UTF-8."
EMPTY_SENTENCE = "The file is empty, but must hold one JSON dictionary a line."
JSONL_SENTENCE = "Expected file to have JSONL format, where every line is a JSON dictionary."

_BRACKETS_OUTSIDE_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{\]}]', re.DOTALL)


class NotADictionaryError(FormatError):
    """The line is not JSON, or it is JSON but no object."""


def read_rows(
    file: BinaryIO, *, max_rows: int, max_line_bytes: int
) -> Iterator[tuple[int, dict[str, Any] | FormatError]]:
    """The rows of a binary file with their 1-based line numbers, or what is wrong with the line.

    Ends early, with a fault FILE, if the file is not UTF-8 text at all or holds more than `max_rows`
    rows. At most one line of at most `max_line_bytes` bytes is in memory.
    """
    rows = 0
    for number, line in _lines(file, max_line_bytes):
        if rows == max_rows:
            yield number, FormatError(f"The file has more than {max_rows} examples.", fault=Fault.FILE)
            return
        rows += 1
        if isinstance(line, FormatError):
            yield number, line
            if line.fault is Fault.FILE:
                return
            continue
        try:
            yield number, parse_object(line)
        except FormatError as error:
            yield number, error


def check_jsonl(file: BinaryIO, *, max_line_bytes: int) -> str | None:
    """The sentence that refuses an open file which is not JSONL, or None: quick enough for every upload.

    Leaves duplicate keys, numbers out of range and the shape of the rows to the job's validation. Blocks.
    """
    is_empty = True
    file.seek(0)
    for number, line in _lines(file, max_line_bytes):
        is_empty = False
        if isinstance(line, FormatError):
            return line.what if line.fault is Fault.FILE else f"{JSONL_SENTENCE} Line {number} {line.what}."
        if not line.startswith(b"{"):  # no parser needed, which could take seconds for the longest lines
            return f"{JSONL_SENTENCE} Line {number} is not a dictionary ({_hint(line)})."
        if not _is_dictionary(line):
            try:
                parse_object(line)
            except NotADictionaryError:
                return f"{JSONL_SENTENCE} Line {number} is not a dictionary ({_hint(line)})."
            except FormatError as error:
                return f"{JSONL_SENTENCE} Line {number} {error.what}."
    return EMPTY_SENTENCE if is_empty else None


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object in `line`; FormatError if it is anything else or breaks one of this file's rules."""
    problem = _text_problem(line)
    if problem is not None:
        raise FormatError(problem)
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise NotADictionaryError(f"is not valid JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:  # Python's own limit on the digits of an integer
        raise FormatError("has a number with too many digits") from error
    if not isinstance(value, dict):
        raise NotADictionaryError("is not a JSON dictionary")
    # Only an escape can bring in half of a surrogate pair: as bytes it is not valid UTF-8.
    if b"\\ud" in line or b"\\uD" in line:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise FormatError("has half of a surrogate pair (\\ud800 to \\udfff) in a string") from None
    return value


def _lines(file: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, bytes | FormatError]]:
    """Lines that are not blank, without surrounding whitespace, under their numbers in the file."""
    number = 0
    while line := file.readline(max_line_bytes + 5):  # room for a byte order mark and CRLF
        number += 1
        is_cut = not line.endswith(b"\n") and len(line) > max_line_bytes
        if number == 1:
            if _looks_like_utf16(line):
                yield number, FormatError(UTF16_SENTENCE, fault=Fault.FILE)
                return
            line = line.removeprefix(BOM)
        stripped = line.strip(WHITESPACE)
        has_more = is_cut and _skip_line(file)
        if has_more or len(stripped) > max_line_bytes:
            yield number, FormatError(f"is longer than {max_line_bytes} bytes")
        elif stripped:
            yield number, stripped


def _skip_line(file: BinaryIO) -> bool:
    """Read on to the end of the line; whether anything but whitespace was left of it."""
    has_text = False
    while chunk := file.readline(SKIP_BYTES):
        has_text = has_text or bool(chunk.strip(WHITESPACE))
        if chunk.endswith(b"\n"):
            break
    return has_text


def _looks_like_utf16(start: bytes) -> bool:
    # A JSON text begins with ASCII, so a zero among its first two bytes means wider code units.
    return start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in start[:2]


def _text_problem(line: bytes) -> str | None:
    """What makes the line unfit for any JSON parser, or None."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is not valid UTF-8 (byte {error.start + 1} of the line)"
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _is_too_deep(line):
        return f"is nested more than {MAX_DEPTH} levels deep"
    return None


def _is_too_deep(line: bytes) -> bool:
    depth = 0
    for token in _BRACKETS_OUTSIDE_STRINGS.finditer(line):
        if token[0] in (b"[", b"{"):
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif token[0] in (b"]", b"}"):
            depth -= 1
    return False


def _is_dictionary(line: bytes) -> bool:
    """A quick first opinion; what this parser refuses, the strict one explains."""
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _hint(line: bytes) -> str:
    start = line[: 4 * HINT_CHARS].decode("utf-8", errors="replace")[:HINT_CHARS]
    shown = "".join(character if character.isprintable() else "?" for character in start)
    return f'HINT: line starts with: "{shown}..."'


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise FormatError(f"has the key {json.dumps(twice[:60])} twice")
    return value


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise FormatError(f"has a number out of range: {digits[:20]}")
    return value


def _constant(name: str) -> float:
    raise FormatError(f"has {name}, which is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)
