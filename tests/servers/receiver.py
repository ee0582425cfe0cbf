"""Something that listens for POSTs, keeps them, and answers as it is told to, badly if need be."""

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    path: str
    headers: Mapping[str, str]
    body: bytes


Behaviour = Callable[["Handler"], None]


@dataclass
class Receiver:
    """`behaviour` may be changed at any time; `released` ends those that wait."""

    port: int
    scheme: str
    behaviour: Behaviour
    received: list[Received] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.receiver.received.append(Received(self.path, headers, body))
        with suppress(OSError):  # whoever asked may have had enough
            self.receiver.behaviour(self)

    def reply(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        pass


def says(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    return lambda handler: handler.reply(status, headers, body)


def endless(handler: Handler) -> None:
    """200, and then a body without an end."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.receiver.released.is_set():
        handler.wfile.write(b"x" * 65536)


def dripping(handler: Handler) -> None:
    """200, and then a byte now and then, always in time for a limit on each read."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.receiver.released.wait(0.05):
        handler.wfile.write(b"x")


def silent(handler: Handler) -> None:
    handler.receiver.released.wait(60)


def resetting(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def babbling(handler: Handler) -> None:
    """What is not HTTP."""
    handler.wfile.write(b"220 mail.example ESMTP\r\n\r\n")
    handler.close_connection = True


@contextmanager
def receiving(behaviour: Behaviour, *, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Receiver]:
    handler = type("BoundHandler", (Handler,), {})
    server = _Server(("127.0.0.1", port), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    receiver = Receiver(server.server_port, "https" if tls else "http", behaviour)
    handler.receiver = receiver
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Failed handshakes and broken connections are what the tests are about."""
