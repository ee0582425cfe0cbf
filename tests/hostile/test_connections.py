"""Clients that send slowly, or without end, or do not read: raw bytes on a socket."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from app.api import connections, middleware
from tests.backends import Site
from tests.conftest import Served, Tenant, serve

_GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
_POST = b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_HEAD_SECONDS", "_LINGER_SECONDS", "_STALLED_SECONDS"):
        monkeypatch.setattr(connections, name, 1.0)


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    address = urlsplit(served.url)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=20) as client:
        yield client


def read_all(client: socket.socket) -> bytes:
    """Until the server closes. A reset after the answer is an end, too."""
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def read_until(client: socket.socket, text: bytes) -> None:
    """Heads and bodies come in pieces."""
    received = b""
    while text not in received:
        piece = client.recv(65536)
        assert piece, received
        received += piece


def refusal(answer: bytes) -> tuple[int, str]:
    """The status and the message of the one answer that there is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]["message"]


def keep_sending(client: socket.socket, piece: bytes, *, every_seconds: float, for_seconds: float) -> None:
    """Until the server wants no more of it."""
    deadline = time.monotonic() + for_seconds
    try:
        while time.monotonic() < deadline:
            client.sendall(piece)
            time.sleep(every_seconds)
    except (BrokenPipeError, ConnectionResetError):
        return
    raise AssertionError("the server went on reading")


def test_headers_that_trickle_are_cut(served: Served) -> None:
    with connected(served) as client:
        client.sendall(_GET)
        began = time.monotonic()
        for _ in range(8):
            client.sendall(b"X: y\r\n")
            time.sleep(0.1)
        assert refusal(read_all(client)) == (408, "The request's headers did not arrive in time.")
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("begun", [b"", b"\r\n\r\n"])
def test_a_connection_without_a_request_is_closed(served: Served, begun: bytes) -> None:
    with connected(served) as client:
        client.sendall(begun)
        assert read_all(client) == b"" or begun


def test_line_feeds_between_requests_keep_no_connection(served: Served) -> None:
    with connected(served) as client:
        client.sendall(_GET + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        keep_sending(client, b"\r\n", every_seconds=0.1, for_seconds=15)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (_GET + b"X: " + b"a" * 300_000, 431),
        (_GET + b"X: a\r\n" * 200, 431),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /" + b"a" * 300_000, 414),
        (b"\r\n" * 150_000, 431),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (_GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (_GET + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (_GET + b"X : y\r\n\r\n", 400),
        ((_GET + b"\r\n") * 40, None),
    ],
    ids=["long", "many", "url", "endless-url", "line-feeds", "tls", "smuggled", "two-lengths", "space", "pipelined"],
)
def test_heads_beyond_measure_are_refused(served: Served, head: bytes, status: int | None) -> None:
    with connected(served) as client:
        client.sendall(head)
        answer = read_all(client)
    if status is None:  # those before are answered, or not: the connection is broken off
        assert answer.count(b"HTTP/1.1 200") < 40
    else:
        assert refusal(answer)[0] == status


def test_a_few_requests_may_be_sent_ahead(served: Served) -> None:
    with connected(served) as client:
        client.sendall((_GET + b"\r\n") * 4 + _GET + b"Connection: close\r\n\r\n")
        assert read_all(client).count(b"HTTP/1.1 200") == 5


def test_another_protocol_is_not_changed_to(served: Served) -> None:
    for wanted in (b"websocket", b"h2c"):
        with connected(served) as client:
            client.sendall(_GET + b"Connection: Upgrade, close\r\nUpgrade: " + wanted + b"\r\n\r\n")
            assert read_all(client).startswith(b"HTTP/1.1 200")


def test_a_body_that_trickles_is_given_up(tenant: Tenant, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, all of them never would."""
    monkeypatch.setattr(middleware, "_IDLE_SECONDS", 1.0)
    with connected(served) as client:
        head = _POST + f"Authorization: Bearer {tenant.key}\r\nContent-Length: 100000\r\n\r\n".encode()
        client.sendall(head)
        keep_sending(client, b"{", every_seconds=0.1, for_seconds=15)


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_who_sends_on_after_a_refusal_reads_it_and_is_cut(served: Served, connection: str) -> None:
    with connected(served) as client:
        size = 1 << 33
        client.sendall(_POST + f"Connection: {connection}\r\nContent-Length: {size}\r\n\r\n".encode())
        client.sendall(b"a" * 5_000_000)
        read_until(client, b"HTTP/1.1 413")
        keep_sending(client, b"a", every_seconds=0.05, for_seconds=15)


def test_a_refused_body_that_ends_soon_keeps_the_connection(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LINGER_SECONDS", 30.0)
    with connected(served) as client:
        client.sendall(_POST + b"Content-Length: 3000000\r\n\r\n")
        client.sendall(b"a" * 1_000_000)
        read_until(client, b"HTTP/1.1 413")
        client.sendall(b"a" * 2_000_000)
        client.sendall(_GET + b"\r\n")
        read_until(client, b"HTTP/1.1 200")


async def test_who_does_not_read_is_cut(tenant: Tenant, served: Served) -> None:
    file = await tenant.client.files.create(
        file=("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n' * 110_000), purpose="fine-tune"
    )
    with connected(served) as client:
        head = f"GET /v1/files/{file.id}/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.key}\r\n\r\n"
        client.sendall(head.encode() * 3)
        keep_sending(client, b"\r\n", every_seconds=0.1, for_seconds=15)


def test_more_connections_than_allowed_are_told_so(site: Site) -> None:
    for served in serve(site.settings(connections=2)):
        with connected(served) as one, connected(served) as two:
            for client in (one, two):
                client.sendall(_GET + b"\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
            with connected(served) as third:
                answer = read_all(third)
            status, message = refusal(answer)
            assert b"retry-after: 2" in answer
            assert (status, message.split(".")[0]) == (503, "Too many connections are open at the moment")
        deadline = time.monotonic() + 10
        while httpx.get(f"{served.url}/healthz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
