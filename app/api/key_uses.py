"""When keys were last used: noted for each request, written about once a minute."""

import asyncio
import logging
from datetime import datetime

from app.auth import Principal
from app.errors import Unavailable
from app.ids import utc_now
from app.resources import Resources
from app.services import keys

_FLUSH_SECONDS = 60.0
_log = logging.getLogger(__name__)


class KeyUses:
    """What is noted is written by a task that sleeps in between, and runs only while there is something to write."""

    def __init__(self, resources: Resources, *, flush_seconds: float = _FLUSH_SECONDS) -> None:
        self._resources = resources
        self._flush_seconds = flush_seconds
        self._last: dict[str, datetime] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, principal: Principal) -> None:
        self._last[principal.key_id] = utc_now()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush_later())

    async def flush(self) -> None:
        """While the database is away, what was noted waits for the next time."""
        noted, self._last = self._last, {}
        try:
            async with self._resources.write() as session:
                await keys.record_uses(session, noted)
        except Unavailable:
            self._last = noted | self._last

    async def _flush_later(self) -> None:
        while self._last:
            await asyncio.sleep(self._flush_seconds)
            try:
                await self.flush()
            except Exception:  # a fault here must not be the end of it
                _log.exception("the uses of keys could not be written")
