"""What the audit log tells of requests that change nothing: downloads, tests, keys that were refused.

They must not make a read wait for a write: what is noted is written soon after, many at a time, by a task that lives
while there is something to write. While the database is away it waits here; what a process that is killed had not
written is lost, as is what would be too much to hold, and the log says so.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from typing import Any

from app.auth import Principal
from app.db.audit_models import Action
from app.errors import Unavailable
from app.observability import tally
from app.origin import origin
from app.resources import Resources
from app.services import audit

_log = logging.getLogger(__name__)
_MOST_WAITING = 10_000
_AT_ONCE = 500
_RETRY_SECONDS = 1.0
_FAILURES_SECONDS = 60.0
_MOST_ADDRESSES = 1000


class Trail:
    """`flush` must be awaited at the end. Refused keys are counted: an entry a minute for each address and reason."""

    def __init__(self, resources: Resources, *, failures_seconds: float = _FAILURES_SECONDS) -> None:
        self._resources = resources
        self._failures_seconds = failures_seconds
        self._waiting: deque[dict[str, Any]] = deque()
        self._failures: Counter[tuple[str | None, str]] = Counter()
        self._failures_due = 0.0
        self._task: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    def note(self, principal: Principal, action: Action, target_id: str | None, **details: Any) -> None:
        self._take(audit.entry(principal, action, target_id, **details))
        self._write_soon()

    def login_failed(self, code: str) -> None:
        whence = origin.get().source_address, code
        if whence not in self._failures and len(self._failures) >= _MOST_ADDRESSES:
            whence = None, code
        self._failures[whence] += 1
        self._write_soon()

    async def flush(self) -> None:
        """Write all that waits, once: Unavailable leaves it waiting."""
        self._take_failures()
        await self._flush_waiting()

    async def _flush_waiting(self) -> None:
        async with self._writing:
            while self._waiting:
                batch = [self._waiting[i] for i in range(min(_AT_ONCE, len(self._waiting)))]
                async with self._resources.write() as session:
                    await audit.write(session, batch)
                for _ in batch:
                    self._waiting.popleft()

    def _take(self, entry: dict[str, Any]) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            tally["lost audit entries"] += 1
            so_far = tally["lost audit entries"]
            _log.error("the audit log lacks %s of %s (%d so far)", entry["action"], entry["target_id"], so_far)
            return
        self._waiting.append(entry)

    def _take_failures(self) -> None:
        counted, self._failures = self._failures, Counter()
        for (address, code), count in counted.items():
            made = audit.entry(None, Action.LOGIN_FAILED, None, outcome="failed", error_code=code, count=count)
            # Of whichever request was the last: the count is of all from that address.
            made |= {"source_address": address, "actor_kind": "anonymous", "actor_id": None}
            made |= {"user_agent": None, "request_id": None, "project_id": None, "organization_id": None}
            self._take(made)

    def _write_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._waiting or self._failures:
            if self._failures and time.monotonic() >= self._failures_due:
                self._failures_due = time.monotonic() + self._failures_seconds
                self._take_failures()
            try:
                await self._flush_waiting()
            except Unavailable:
                pass
            except Exception:  # a fault here must not be the end of it
                _log.exception("the audit log could not be written")
            if self._waiting or self._failures:
                await asyncio.sleep(_RETRY_SECONDS)
