"""Forms made of what forms are made of, and of anything: read alike however they arrive, or refused."""

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from hypothesis import example, given
from hypothesis import strategies as st

from app.api import multipart
from app.errors import InvalidRequest, TooLarge
from app.services import files
from tests.hostile.fuzzing import fuzzed

MOST = 2000
_NAMES = ["file", "purpose", "expires_after[anchor]", "more", "", "\0", "f" * 300, 'a"b', "\N{FOX FACE}"]
_TOKENS = [
    b"--B\r\n", b"--B--\r\n", b"--B--", b"\r\n--B\r\n", b"\r\n", b"\n", b"\r", b"--", b"-", b"B", b"\r\n--", b"\r\n--B",
    b"Content-Disposition: form-data", b"; name=", b"; filename=", b"; filename*=UTF-8''%e2%98%83", b'"file"',
    b'"purpose"', b'"a.jsonl"', b"fine-tune", b"{}\n", b": ", b":", b";", b'"', b"\\", b"\0", b"\xff", b"x" * 300,
    b"Content-Type: application/json\r\n", b"Content-Transfer-Encoding: base64\r\n",
    b"content-disposition:form-data;name=file",
]  # fmt: skip
_PIECES = st.one_of(
    st.sampled_from(_TOKENS),
    st.binary(max_size=40),
    st.builds(
        lambda name, rest: f'--B\r\nContent-Disposition: form-data; name="{name}"{rest}\r\n\r\n'.encode(),
        st.sampled_from(_NAMES),
        st.sampled_from(["", '; filename="a.jsonl"', "; filename=a", '; filename=""', "; filename", '; filename="']),
    ),
)
BODIES = st.lists(_PIECES, max_size=30).map(b"".join)
CUTS = st.lists(st.integers(0, 3000), max_size=8)


@fuzzed(60)
@given(body=BODIES, cuts=CUTS)
@example(body=b"", cuts=[])
@example(body=b"--B--\r\n", cuts=[])
@example(body=b"\r\n" * 100 + b"--B--", cuts=[1, 3])
@example(body=b"\r", cuts=[])
def test_a_form_means_the_same_in_one_piece_and_in_many(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, cuts: list[int]
) -> None:
    directory = tmp_path_factory.getbasetemp() / "uploads"
    whole = received([body], directory)
    for chunks in (_cut(body, cuts), [body[at : at + 1] for at in range(len(body))]):
        found = received(chunks, directory)
        # The parser takes a lone line feed at a chunk's end for one that may yet go on: refused in other words.
        assert found == whole or found[0] == whole[0] == "InvalidRequest"
    assert not list(directory.iterdir())


@fuzzed(80)
@given(content=st.binary(min_size=1, max_size=MOST), cuts=CUTS)
@example(content=b"\r\n--", cuts=[60])
@example(content=b"\r\n--B", cuts=[])
@example(content=b"\r", cuts=[])
def test_a_file_arrives_as_it_was_sent(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int]
) -> None:
    boundary = b"Boundary"
    body = b"--%s\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n" % boundary
    body += content + b"\r\n--%s--\r\n" % boundary
    directory = tmp_path_factory.getbasetemp() / "uploads"
    if b"\r\n--" + boundary not in content + b"\r\n":
        assert received(_cut(body, cuts), directory, boundary="Boundary") == ("a", {}, content)


@fuzzed(60)
@given(value=st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.decode("latin-1")))
@example(value="multipart/form-data; boundary=" + "B" * 201)
@example(value='multipart/form-data; boundary="')
@example(value="multipart/form-data; boundary*0=a; boundary*1=b")
def test_any_content_type(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    directory = tmp_path_factory.getbasetemp() / "uploads"
    header = value.encode("latin-1", "replace")
    for prefix in (b"", b"multipart/form-data; boundary=", b"multipart/form-data; "):
        outcome = received([b"--B--\r\n"], directory, header=prefix + header)
        assert outcome[0] in ("InvalidRequest", "TooLarge")


@fuzzed(100)
@given(name=st.text(max_size=600))
@example(name="..")
@example(name="\u202e\u2028.jsonl")
@example(name="a/..\\..")
def test_a_label_is_no_path(name: str) -> None:
    try:
        label = files.check_name(name, purpose="user_data")
    except InvalidRequest:
        return
    assert 0 < len(label) <= 255
    assert not set(label) & set("/\\\0\r\n")
    assert label not in (".", "..")


def received(
    chunks: Sequence[bytes], directory: Path, *, boundary: str = "B", header: bytes | None = None
) -> tuple[Any, ...]:
    """What the form holds, or how it was refused; nothing else may come of it."""
    content_type = f"multipart/form-data; boundary={boundary}".encode() if header is None else header
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def read() -> tuple[Any, ...]:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", content_type)]}
        request = Request(scope, receive)
        try:
            async with multipart.receive(request, multipart.FILE, directory=directory, max_file_bytes=MOST) as form:
                form.file.seek(0)
                return form.filename, form.fields, form.file.read()
        except (InvalidRequest, TooLarge) as refused:
            return type(refused).__name__, refused.message, refused.param

    return asyncio.run(read())


def _cut(body: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    return [body[start:end] for start, end in itertools.pairwise(places)]
