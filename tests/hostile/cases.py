"""One bad input: the request as bytes, so that no client library tidies it up, and what the answer must say."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANY: Any = object()
JOBS = "/v1/fine_tuning/jobs"
_CHUNK_BYTES = 1 << 16
_SECONDS = 60
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """`{KEY}`, `{FILE}` and the like, in target, headers and body, stand for what the project has (`test_bad_inputs`).

    `status` are the answers that are right. One of the HTTP server itself, which never shows us the request, has no
    envelope: `is_servers_own`. `note` says why an answer is another than one would expect.
    """

    group: int
    name: str
    status: int | tuple[int, ...]
    code: Any = None
    param: Any = None
    method: str = "GET"
    target: str = "/v1/files"
    headers: tuple[bytes, ...] = ()
    body: bytes | None = None
    is_chunked: bool = False
    has_key: bool = True
    has_host: bool = True
    is_servers_own: bool = False
    note: str = ""

    @property
    def statuses(self) -> tuple[int, ...]:
        return self.status if isinstance(self.status, tuple) else (self.status,)

    def request(self, place: Mapping[str, str]) -> bytes:
        body = None if self.body is None else _filled(self.body, place)
        lines = [f"{self.method} {self.target} HTTP/1.1".encode(), *self.headers, b"Connection: close"]
        lines += [b"Host: hone.example"] * self.has_host
        lines += [b"Authorization: Bearer {KEY}"] * self.has_key
        if self.is_chunked:
            lines.append(b"Transfer-Encoding: chunked")
            body = _chunked(body or b"")
        elif body is not None and not any(line.lower().startswith(b"content-length:") for line in self.headers):
            lines.append(f"Content-Length: {len(body)}".encode())
        return _filled(b"\r\n".join(lines) + b"\r\n\r\n", place) + (body or b"")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def error(self) -> dict[str, Any]:
        """The object in the envelope, which must be OpenAI's."""
        envelope = json.loads(self.body)
        assert set(envelope) == {"error"}, self.text
        assert set(envelope["error"]) == {"message", "type", "param", "code"}, self.text
        return envelope["error"]


async def send(url: str, request: bytes) -> Answer:
    """The answer to a request, which may come before all of it is sent.

    What the server does not read any more it resets, and a client that is slow to read then loses the answer: such a
    request is sent again.
    """
    received = b""
    for _ in range(_TRIES):
        if received := await _exchange(url, request):
            break
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    assert first, "the connection was closed without an answer"
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), headers, body)


async def _exchange(url: str, request: bytes) -> bytes:
    host, _, port = url.removeprefix("http://").partition(":")
    async with asyncio.timeout(_SECONDS):
        reader, writer = await asyncio.open_connection(host, int(port))
        writing = asyncio.create_task(_write(writer, request))
        received = bytearray()
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                received += chunk
        except ConnectionResetError:  # the server does not read what it has refused
            pass
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return bytes(received)


def job(changes: Mapping[str, Any]) -> bytes:
    """The body of a job, valid but for the changes; None takes a field away."""
    body = {"model": "{MODEL}", "training_file": "{FILE}", **changes}
    return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


def jobs(group: int, changes: Sequence[tuple[Mapping[str, Any], Any]], **more: Any) -> list[Case]:
    """Cases of POST /v1/fine_tuning/jobs: changes to a valid body, and the `param` that is at fault."""
    return [
        Case(
            group=group,
            name=str(dict(change))[:60],
            param=param,
            body=job(change),
            **({"status": 400, "method": "POST", "target": JOBS, "headers": (JSON,), "code": ANY} | more),
        )
        for change, param in changes
    ]


JSON = b"Content-Type: application/json"


async def _write(writer: asyncio.StreamWriter, request: bytes) -> None:
    for start in range(0, len(request), _CHUNK_BYTES):
        writer.write(request[start : start + _CHUNK_BYTES])
        await writer.drain()


def _filled(text: bytes, place: Mapping[str, str]) -> bytes:
    for name, value in place.items():
        text = text.replace(f"{{{name}}}".encode(), value.encode())
    return text


def _chunked(body: bytes) -> bytes:
    pieces = [body[start : start + _CHUNK_BYTES] for start in range(0, len(body), _CHUNK_BYTES)]
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"
