"""Groups 63 to 73: POST /v1/fine_tuning/jobs."""

import json
from typing import Any

from tests.hostile.cases import ANY, JOBS, JSON, Case, job, jobs

_POST: dict[str, Any] = {"method": "POST", "target": JOBS}
_DEEP = json.loads("[" * 900 + "]" * 900)
_NAN, _INFINITY = float("nan"), float("inf")


def _parameter(name: str, *values: object) -> list[tuple[dict[str, Any], str]]:
    return [({"hyperparameters": {name: value}}, f"hyperparameters.{name}") for value in values]


CASES = [
    *jobs(63, [({"model": name}, "model") for name in ("nothing", "a/b", "../x", "x" * 5000)], code="model_not_found"),
    *jobs(63, [({"model": value}, "model") for value in (None, 7, "a\0b", ["a"])]),
    *jobs(
        64,
        [({"training_file": "{OTHERS_FILE}"}, "training_file"), ({"training_file": "file-unknown"}, "training_file")],
        code="file_not_found",
    ),
    *jobs(64, [({"validation_file": "{OTHERS_FILE}"}, "validation_file")], code="file_not_found"),
    *jobs(65, [({"training_file": "{DELETED_FILE}"}, "training_file")], code="file_not_found"),
    *jobs(65, [({"training_file": "{RESULT_FILE}"}, "training_file")], code="invalid_file_purpose"),
    *jobs(65, [({"training_file": value}, "training_file") for value in (None, ["a"], "../../etc/passwd", "x" * 5000)]),
    *jobs(66, _parameter("n_epochs", 0, -1, 51, 10**9, "auto ", "3", True, 2.5, 1e300, [], {})),
    *jobs(66, _parameter("batch_size", 0, 257, True, "AUTO")),
    *jobs(67, _parameter("learning_rate_multiplier", 0, -0.1, _NAN, _INFINITY, -_INFINITY, "inf", "1", True, 10**400)),
    Case(
        group=67,
        name="1e999",
        status=400,
        code=ANY,
        param="hyperparameters.learning_rate_multiplier",
        headers=(JSON,),
        body=job({"hyperparameters": {"learning_rate_multiplier": 0}}).replace(b": 0}", b": 1e999}"),
        **_POST,
    ),
    *jobs(68, [({"seed": value}, "seed") for value in (-1, 2**31, 2**63, 10**4000, "7", 7.5, True)]),
    Case(
        group=68,
        name="5000 digits",
        status=400,
        code=ANY,
        param=ANY,
        headers=(JSON,),
        body=job({"seed": 0}).replace(b'"seed": 0', b'"seed": ' + b"9" * 5000),
        note="Python parses no number of so many digits: the body is no JSON that we can read",
        **_POST,
    ),
    *jobs(
        68,
        [({"seed": 7.0}, ANY)],
        status=(200, 400),
        note="JSON has one kind of number: 7.0 may be taken for 7",
    ),
    *jobs(69, [({"suffix": text}, "suffix") for text in ("", "x" * 65, "a\0", "\ud800", 7)]),
    *jobs(
        69,
        [({"suffix": text}, ANY) for text in ("a/b", "a:b", "\N{FOX FACE}")],
        status=(200, 400),
        note="may be taken: names of models are made of the suffix, and do not hold it as it is",
    ),
    *jobs(
        70,
        [
            ({"metadata": {f"k{i}": "v" for i in range(17)}}, "metadata"),
            ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 64),
            ({"metadata": {"k": "v" * 513}}, "metadata.k"),
            ({"metadata": {"k": 1}}, "metadata.k"),
            ({"metadata": {"k": "\0"}}, "metadata.k"),
            ({"metadata": {"k": "\udfff"}}, "metadata.k"),
            ({"metadata": {str(i): "" for i in range(80_000)}}, "metadata"),
            ({"metadata": _DEEP}, "metadata"),
        ],
    ),
]

_BODIES = {
    "empty": b"",
    "null": b"null",
    "array": b"[]",
    "text": b'"text"',
    "trailing garbage": b"{} trailing",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "a"}'.encode("utf-16"),
    "depth 900": b"[" * 900 + b"]" * 900,
    "depth 100,000": b"[" * 100_000,
    "depth 400,000 of objects": b'{"a":' * 150_000,
}
CASES += [
    Case(group=71, name=name, status=400, headers=(JSON,), body=body, code=ANY, param=ANY, **_POST)
    for name, body in _BODIES.items()
]
CASES += [
    Case(group=71, name="50 MiB declared", status=413, headers=(JSON, b"Content-Length: 52428800"), body=b"{", **_POST),
    Case(group=71, name="2 MiB in chunks", status=413, headers=(JSON,), body=b" " * 2**21, is_chunked=True, **_POST),
]
CASES += [
    Case(group=72, name=f"{header!r}", status=(400, 415), headers=header, body=job({}), code=ANY, param=ANY, **_POST)
    for header in ((b"Content-Type: text/plain",), (b"Content-Type: nonsense",), (b"Content-Type:",), ())
]
CASES += [
    Case(
        group=73,
        name=f"Idempotency-Key {name}",
        status=400,
        headers=(JSON, b"Idempotency-Key: " + value),
        body=job({}),
        code="invalid_idempotency_key",
        **_POST,
    )
    for name, value in (("of 256 characters", b"x" * 256), ("empty", b""))
]
CASES += [
    Case(
        group=73,
        name="Idempotency-Key with a line feed",
        status=400,
        headers=(JSON, b"Idempotency-Key: a\rb"),
        body=job({}),
        code=ANY,
        is_servers_own=True,
        **_POST,
    ),
    Case(
        group=73,
        name="used for another body",
        status=422,
        headers=(JSON, b"Idempotency-Key: {USED_IDEMPOTENCY_KEY}"),
        body=job({"seed": 1}),
        code="idempotency_key_reused",
        note="never 409, which OpenAI's clients repeat; twins in flight wait for each other and get one answer",
        **_POST,
    ),
]
