"""A TCP proxy that does to connections what networks do: delays, silence, resets, replies that get lost.

It runs in a thread with an event loop of its own, so that tests of every kind may use it. Everything that
is not armed by a fault passes unchanged.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

_CHUNK_BYTES = 1 << 16
_ABORT = struct.pack("ii", 1, 0)  # linger for no time: closing sends RST instead of FIN


class _Marked(Enum):
    RESET = "reset"  # the request does not arrive
    LOSE_REPLY = "lose reply"  # it arrives, is answered, and the answer does not


class Proxy:
    """Listens on `port` of this machine and forwards to `target_port`. `heal` ends every fault."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.num_connections = 0  # since the start
        self.fired = threading.Event()  # set when a marked request has been met, or a connection was cut
        self._target_port = target_port
        self._delay_seconds = 0.0
        self._bytes_per_second: float | None = None
        self._mark: tuple[bytes, _Marked] | None = None
        self._reply_bytes_left: int | None = None
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._closed_door: socket.socket | None = None
        self._links: set[_Link] = set()

    def delay(self, seconds: float) -> None:
        """Each piece of data, in both directions, arrives this much later."""
        self._delay_seconds = seconds

    def throttle(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second

    def black_hole(self) -> None:
        """Connections are accepted and stay open; nothing arrives any more, not even their end."""
        self._call(self._passing.clear)

    def refuse(self) -> None:
        """Nobody listens; open connections are reset."""

        def close_door() -> None:
            assert self._server is not None
            self._server.close()
            self._closed_door = _bound(self.port)  # so that no other process takes the port meanwhile
            self._reset_all()

        self._call(close_door)

    def reset(self) -> None:
        """Reset the connections that are open now."""
        self._call(self._reset_all)

    def cut_after(self, reply_bytes: int) -> None:
        """Reset the connection on which that many more bytes have come back, counted over all of them; once."""
        self.fired.clear()
        self._reply_bytes_left = reply_bytes

    def reset_at(self, marker: bytes) -> None:
        """Reset the next connection that sends `marker`, before it arrives; once."""
        self._arm(marker, _Marked.RESET)

    def lose_reply(self, marker: bytes) -> None:
        """Let the next request with `marker` through, and reset its connection instead of the reply; once."""
        self._arm(marker, _Marked.LOSE_REPLY)

    def heal(self) -> None:
        self._delay_seconds, self._bytes_per_second = 0.0, None
        self._mark, self._reply_bytes_left = None, None
        self._call(self._passing.set)
        if self._closed_door is not None:
            self._closed_door.close()
            self._closed_door = None
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)

    def _arm(self, marker: bytes, what: _Marked) -> None:
        self.fired.clear()
        self._mark = (marker, what)

    def _call(self, action: Callable[[], None]) -> None:
        """In the proxy's thread; returns when it is done."""
        done = threading.Event()

        def run() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(5)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._passing.set()
        self._loop.run_until_complete(self._listen())
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._reset_all()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        link = _Link(writer)
        self._links.add(link)
        try:
            await self._passing.wait()
            from_server, link.to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(
                self._forward_requests(reader, link.to_server, link),
                self._forward_replies(from_server, writer, link),
            )
        except OSError:
            link.reset()
        finally:
            self._links.discard(link)
            link.close()

    async def _forward_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: "_Link"
    ) -> None:
        end = b""  # a marker may come in two pieces
        while data := await reader.read(_CHUNK_BYTES):
            if self._mark is not None:
                marker, what = self._mark
                if marker in end + data:
                    self._mark = None
                    if what is _Marked.RESET:
                        self._cut(link)
                        return
                    link.loses_reply = True
                end = data[-len(marker) :]
            await self._pass(data, writer)
        await self._passing.wait()
        writer.write_eof()

    async def _forward_replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: "_Link") -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if link.loses_reply:
                self._cut(link)
                return
            left = self._reply_bytes_left
            if left is not None:
                self._reply_bytes_left = left - len(data)
                if left <= len(data):
                    self._reply_bytes_left = None
                    await self._pass(data[:left], writer)
                    self._cut(link)
                    return
            await self._pass(data, writer)
        await self._passing.wait()
        if writer.can_write_eof():
            writer.write_eof()

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
        while data:
            await self._passing.wait()
            piece = data
            if self._bytes_per_second is not None:
                piece = data[: max(1, int(self._bytes_per_second / 20))]
                await asyncio.sleep(len(piece) / self._bytes_per_second)
            writer.write(piece)
            await writer.drain()
            data = data[len(piece) :]

    def _cut(self, link: "_Link") -> None:
        link.reset()
        self.fired.set()


@dataclass(eq=False)
class _Link:
    """One connection of a client, and ours to the server."""

    to_client: asyncio.StreamWriter
    to_server: asyncio.StreamWriter | None = None
    loses_reply: bool = False

    def reset(self) -> None:
        for writer in self._writers():
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            writer.transport.abort()

    def close(self) -> None:
        for writer in self._writers():
            writer.close()

    def _writers(self) -> list[asyncio.StreamWriter]:
        return [writer for writer in (self.to_client, self.to_server) if writer is not None]


@contextmanager
def running(target_port: int) -> Iterator[Proxy]:
    proxy = Proxy(target_port)
    ready = threading.Event()
    thread = threading.Thread(target=proxy._run, args=(ready,), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        if proxy._closed_door is not None:
            proxy._closed_door.close()
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join(10)
        assert not thread.is_alive()


def _bound(port: int) -> socket.socket:
    """A socket that holds a port without listening: connecting to it is refused."""
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("127.0.0.1", port))
    return door
