"""Groups 45 to 62: what may be wrong with training data. Some is seen at the upload, the rest when a job comes."""

import codecs
import json
from dataclasses import dataclass
from typing import Any

MAX_LINE_BYTES = 1 << 20
MAX_ROWS = 2000
_CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]}
GOOD = b"".join(
    json.dumps(
        {**_CHAT, "messages": [*_CHAT["messages"], {"role": "user", "content": str(i)}, _CHAT["messages"][1]]}
    ).encode()
    + b"\n"
    for i in range(12)
)


@dataclass(frozen=True)
class DataCase:
    """`at_upload` are words of the upload's refusal; without, the file is stored, and `verdict` has the code and
    words of the job's error, or is None for a file that is fine."""

    group: int
    name: str
    content: bytes
    at_upload: str | None = None
    verdict: tuple[str, str] | None = None
    note: str = ""


def _line(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def _bad(*lines: Any) -> bytes:
    """Twelve good lines, then these: the error must name line 13."""
    return GOOD + b"\n".join(_line(line) for line in lines) + b"\n"


def _with(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


_USER, _ASSISTANT = _CHAT["messages"]
_FORMAT = "invalid_training_file"


def _job(group: int, name: str, line: Any, words: str, code: str = _FORMAT) -> DataCase:
    return DataCase(group, name, _bad(line), verdict=(code, words))


def _upload(group: int, name: str, content: bytes, words: str) -> DataCase:
    return DataCase(group, name, content, at_upload=words)


CASES = [
    _upload(45, "text", _bad(b"hello"), "Line 13 is not a dictionary"),
    _upload(45, "cut short", _bad(b'{"messages": [{"role"'), "Line 13 is not a dictionary"),
    _upload(45, "CSV", b"prompt,completion\na,b\n", "Line 1 is not a dictionary"),
    _upload(46, "array in a line", _bad([_CHAT]), "Line 13 is not a dictionary"),
    _upload(46, "one array", json.dumps([_CHAT] * 12).encode(), "Line 1 is not a dictionary"),
    _job(47, "no messages", {"other": 1}, "line 13"),
    _job(47, "empty messages", _with(), "line 13, field messages"),
    _job(47, "messages is text", {"messages": "hi"}, "line 13, field messages"),
    _job(47, "messages is null", {"messages": None}, "line 13, field messages"),
    _job(47, "a message is text", _with("hi"), "line 13"),
    _job(48, "unknown role", _with({"role": "wizard", "content": "x"}, _ASSISTANT), "line 13, field messages[0]"),
    _job(48, "role is a number", _with({"role": 1, "content": "x"}, _ASSISTANT), "line 13, field messages[0]"),
    _job(49, "no assistant message", _with(_USER), "line 13"),
    _job(50, "content is a number", _with({"role": "user", "content": 4}, _ASSISTANT), "line 13, field messages[0]"),
    _job(50, "content is null", _with(_USER, {"role": "assistant", "content": None}), "line 13, field messages[1]"),
    DataCase(51, "byte order mark", codecs.BOM_UTF8 + GOOD),
    _upload(51, "two byte order marks", codecs.BOM_UTF8 * 2 + GOOD, "Line 1"),
    DataCase(52, "CRLF, blank lines, no last line feed", GOOD.replace(b"\n", b"\r\n\r\n").rstrip()),
    _upload(53, "UTF-16", GOOD.decode().encode("utf-16"), "UTF-16"),
    _upload(53, "UTF-16 without a mark", GOOD.decode().encode("utf-16-be"), "UTF-16"),
    _upload(53, "UTF-32", GOOD.decode().encode("utf-32"), "UTF-16 or UTF-32"),
    _upload(54, "invalid byte", _bad(b'{"messages": "\xff"}'), "Line 13 is not valid UTF-8 (byte 15"),
    _upload(54, "overlong form", _bad(b'{"messages": "\xc0\xaf"}'), "Line 13 is not valid UTF-8"),
    _upload(54, "surrogate in UTF-8", _bad(b'{"messages": "\xed\xa0\x80"}'), "Line 13 is not valid UTF-8"),
    _upload(55, "half of a surrogate pair", _bad(_line(_CHAT).replace(b"It is", rb"\ud800")), "Line 13"),
    DataCase(
        56,
        "NUL in content",
        _bad(_line(_CHAT).replace(b"It is", rb"\u0000")),
        note="taken: text of the data goes to the tokenizer, never to the database",
    ),
    *(
        _upload(57, f"weight {number}", _bad(_line(_CHAT)[:-3] + b', "weight": ' + number + b"}]}"), "Line 13")
        for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"01")
    ),
    _job(57, "weight 0.5", _line(_CHAT)[:-3] + b', "weight": 0.5}]}', "line 13, field messages[1].weight"),
    _job(58, "messages twice", _line(_CHAT)[:-1] + b", " + _line(_CHAT)[1:], '"messages" twice'),
    _job(
        58, "role twice", _line(_CHAT).replace(b'"role": "user"', b'"role": "user", "role": "system"'), '"role" twice'
    ),
    _upload(59, "arrays 100,000 deep", _bad(b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "levels deep"),
    _upload(59, "objects 100,000 deep", _bad(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "levels deep"),
    _upload(59, "never closed", _bad(b'{"a":' * 100_000), "levels deep"),
    _job(59, "200 deep", {"messages": json.loads("[" * 200 + "]" * 200)}, "levels deep"),
    _upload(60, "line of 2 MiB", _bad({"messages": "x" * 2 * 1024**2}), "Line 13 is longer than 1048576 bytes"),
    _upload(60, "2 MiB without a line feed", b"x" * 2 * 1024**2, "Line 1 is longer than 1048576 bytes"),
    DataCase(
        61,
        "many short lines",
        (_line(_CHAT) + b"\n") * (MAX_ROWS + 1),
        verdict=(_FORMAT, f"more than {MAX_ROWS} examples"),
    ),
    DataCase(62, "too few", GOOD[: GOOD.index(b"\n") + 1] * 9, verdict=("invalid_n_examples", "has 9 example(s)")),
    DataCase(
        62,
        "none is left",
        _line(_with({"role": "user", "content": "2 " * 4000}, _ASSISTANT)) * 1 + b"\n",
        verdict=("invalid_n_examples", "has 0 example(s)"),
    ),
    _upload(62, "nothing", b"\n\n", "file is empty"),
]
