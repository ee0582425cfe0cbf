"""Answers that go on until a job has ended: how many a key may have at once, and when they end before that."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.auth import Principal
from app.errors import TooManyRequests, Unavailable
from app.resources import Resources
from app.services import keys

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
_RETRY_SECONDS = 10.0


class Streams:
    """Those of one process, by key."""

    def __init__(self, most_of_a_key: int) -> None:
        self._most = most_of_a_key
        self._open: Counter[str] = Counter()

    def begin(self, key_id: str) -> None:
        """Raises TooManyRequests. Each begin has its end."""
        if self._open[key_id] >= self._most:
            sentence = (
                f"This API key has {self._most} streams open, which is the most that this server allows "
                "(HONE_STREAMS_PER_KEY). Close one, or ask for the list instead."
            )
            raise TooManyRequests(sentence, retry_after_seconds=_RETRY_SECONDS, headers={})
        self._open[key_id] += 1

    def end(self, key_id: str) -> None:
        self._open[key_id] -= 1
        if not self._open[key_id]:
            del self._open[key_id]


class Stream(StreamingResponse):
    """Counts as open while it is sent, and not from when it was made: one that is made may never be sent."""

    def __init__(
        self,
        content: AsyncIterator[str] | AsyncIterator[bytes],
        *,
        among: Streams,
        principal: Principal,
        media_type: str,
        headers: Mapping[str, str] = HEADERS,
    ) -> None:
        super().__init__(content, media_type=media_type, headers=headers)
        self._among = among
        self._key_id = principal.key_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._among.begin(self._key_id)  # nothing is sent so far: a refusal is answered as any other
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._among.end(self._key_id)


class KeyWatch:
    """Whoever holds a stream open has shown a key once; it may be revoked since."""

    def __init__(self, resources: Resources, principal: Principal, *, every_seconds: float) -> None:
        self._resources = resources
        self._principal = principal
        self._every_seconds = every_seconds
        self._looked_at = time.monotonic()

    async def is_revoked(self) -> bool:
        """By a look into the database now and then."""
        if time.monotonic() - self._looked_at < self._every_seconds:
            return False
        try:
            async with self._resources.read() as session:
                is_valid = await keys.is_valid(session, self._principal)
        except Unavailable:  # nor is there anything to tell
            return False
        self._looked_at = time.monotonic()
        return not is_valid


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Shorter when the server stops."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()
