"""Giving up transfers that trickle. A socket's timeout starts anew with each byte, so it never ends one."""

import io
import time
from collections.abc import Callable
from typing import Any

_STRETCH_BYTES = 1 << 20  # that much must move within the given seconds


class PacedPart(io.BytesIO):
    """Bytes to send, read in small blocks by an HTTP client.

    Raises TimeoutError when a mebibyte takes longer than `seconds`, or at once when `is_stopped`.
    """

    def __init__(self, content: bytes, seconds: float, is_stopped: Callable[[], bool]) -> None:
        super().__init__(content)
        self._seconds = seconds
        self._is_stopped = is_stopped
        self._mark, self._marked_at = 0, time.monotonic()

    def read(self, size: int | None = -1, /) -> bytes:
        now = time.monotonic()
        if not 0 < self.tell() - self._mark < _STRETCH_BYTES:  # another stretch, or a client that begins anew
            self._mark, self._marked_at = self.tell(), now
        if self._is_stopped():
            raise TimeoutError("the transfer was stopped")
        if now - self._marked_at > self._seconds:
            raise TimeoutError("the transfer is too slow")
        return super().read(size)


def read_paced(raw: Any, size: int, seconds: float) -> bytes:
    """Up to `size` bytes of an S3 answer, nothing at its end. Blocks; raises TimeoutError when they trickle."""
    deadline = time.monotonic() + seconds
    with io.BytesIO() as chunk:
        while chunk.tell() < size:
            # Returns with what has arrived, where `read` would wait for all of it.
            piece = raw.read1(size - chunk.tell())
            if not piece:
                break
            chunk.write(piece)
            if time.monotonic() > deadline:
                raise TimeoutError("the transfer is too slow")
        return chunk.getvalue()
