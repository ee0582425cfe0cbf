"""The proxy does each thing that it is told, once, and otherwise nothing."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults import proxy
from tests.faults.proxy import Proxy


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        while data := self.request.recv(65536):
            server.received += data
            self.request.sendall(data)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    received = b""

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections are reset here on purpose."""


@pytest.fixture
def echo() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxied(echo: _Server) -> Iterator[Proxy]:
    with proxy.running(echo.server_address[1]) as made:
        yield made


def connect(proxied: Proxy, *, timeout: float = 5) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxied.port), timeout)


def say(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(65536)


def until_reset(connection: socket.socket) -> bytes:
    """What still comes before the connection is reset; fails if it ends otherwise."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        return received
    raise AssertionError("the connection ended, but was not reset")


def test_what_is_said_passes_in_both_directions_and_so_does_the_end(proxied: Proxy) -> None:
    with connect(proxied) as one, connect(proxied) as other:
        assert say(one, b"hello") == b"hello"
        assert say(other, b"there") == b"there"
        one.shutdown(socket.SHUT_WR)
        assert one.recv(10) == b""
    assert proxied.num_connections == 2


def test_much_passes_whole(proxied: Proxy) -> None:
    text = bytes(range(256)) * 8192
    with connect(proxied) as one:
        sender = threading.Thread(target=one.sendall, args=(text,))
        sender.start()
        received = b""
        while len(received) < len(text):
            received += one.recv(1 << 20)
        sender.join()
    assert received == text


def test_delays_and_rates_take_their_time(proxied: Proxy) -> None:
    with connect(proxied) as one:
        proxied.delay(0.1)
        began = time.monotonic()
        assert say(one, b"x") == b"x"
        assert time.monotonic() - began >= 0.2
        proxied.heal()
        proxied.throttle(1000)
        began = time.monotonic()
        one.sendall(b"y" * 200)
        received = b""
        while len(received) < 200:
            received += one.recv(200)
        assert time.monotonic() - began >= 0.2


def test_a_black_hole_keeps_all_and_gives_it_back_when_it_heals(proxied: Proxy) -> None:
    with connect(proxied, timeout=0.3) as before:
        assert say(before, b"x") == b"x"
        proxied.black_hole()
        with connect(proxied, timeout=0.3) as during:
            for connection in (before, during):
                with pytest.raises(TimeoutError):
                    say(connection, b"lost?")
            proxied.heal()
            assert before.recv(10) == b"lost?"
            assert during.recv(10) == b"lost?"


def test_who_is_refused_can_connect_again_after(proxied: Proxy) -> None:
    with connect(proxied) as one:
        assert say(one, b"x") == b"x"
        proxied.refuse()
        with pytest.raises(ConnectionResetError):
            one.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(proxied)
    proxied.heal()
    with connect(proxied) as again:
        assert say(again, b"y") == b"y"


def test_a_reset_is_a_reset_and_no_end(proxied: Proxy) -> None:
    with connect(proxied) as one:
        assert say(one, b"x") == b"x"
        proxied.reset()
        with pytest.raises(ConnectionResetError):
            one.recv(1)


def test_a_connection_is_cut_after_so_many_bytes(proxied: Proxy) -> None:
    proxied.cut_after(5)
    with connect(proxied) as one:
        assert say(one, b"abc") == b"abc"
        one.sendall(b"defg")
        assert until_reset(one) in (b"", b"de")  # a reset may overtake what came before it
    assert proxied.fired.wait(5)


@pytest.mark.parametrize("pieces", [[b"begin; COMMIT; "], [b"begin; COM", b"MIT; "]])
def test_a_marked_request_is_reset_before_it_arrives(proxied: Proxy, echo: _Server, pieces: list[bytes]) -> None:
    proxied.reset_at(b"COMMIT")
    with connect(proxied) as one:
        for piece in pieces:
            one.sendall(piece)
            time.sleep(0.05)
        until_reset(one)
    assert proxied.fired.wait(5)
    assert b"COMMIT" not in echo.received
    with connect(proxied) as again:
        assert say(again, b"COMMIT") == b"COMMIT"


def test_the_reply_to_a_marked_request_is_lost(proxied: Proxy, echo: _Server) -> None:
    proxied.lose_reply(b"COMMIT")
    with connect(proxied) as one:
        assert say(one, b"begin") == b"begin"
        with pytest.raises(ConnectionResetError):
            say(one, b"COMMIT")
    assert proxied.fired.wait(5)
    assert echo.received == b"beginCOMMIT"
    with connect(proxied) as again:
        assert say(again, b"COMMIT") == b"COMMIT"
