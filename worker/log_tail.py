"""A job's log on its way from the trainer's stderr to storage, in redacted segments."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Job, LogSegment
from app.observability import redact
from app.resources import Resources
from app.services.leases import Lease
from app.storage.base import StoredObject
from worker import guarded

_SEGMENT_BYTES = 1 << 20


@dataclass
class LogTail:
    """Follows a file that grows; `flush` stores what is new, up to `max_bytes` in all for this claim."""

    resources: Resources
    lease: Lease
    source: Path
    scratch: Path
    max_bytes: int
    _offset: int = 0
    _number: int = 0

    async def flush(self, *, final: bool = False) -> None:
        while text := self._next(final):
            await asyncio.to_thread(self.scratch.write_bytes, text)
            key = self.lease.object_key(f"log/{self._number}")
            stored = await self.resources.storage.put_file(key, self.scratch)
            await guarded.write(self.resources, self.lease, partial(_register, self._number, stored))
            self._number += 1

    def _next(self, final: bool) -> bytes:
        """The next whole lines: a secret must not escape redaction by lying across two segments."""
        if not self.source.exists() or self._offset >= self.max_bytes:
            return b""
        with self.source.open("rb") as file:
            file.seek(self._offset)
            most = min(_SEGMENT_BYTES, self.max_bytes - self._offset)
            piece = file.read(most)
        if not final or len(piece) == most:
            lines = piece[: piece.rfind(b"\n") + 1]
            piece = lines or (piece if len(piece) == most else b"")
        self._offset += len(piece)
        if piece and self._offset >= self.max_bytes:
            piece += b"\n[the log is cut here: it has reached its size limit]\n"
        return redact(piece.decode("utf-8", errors="replace")).encode()


async def _register(number: int, stored: StoredObject, session: AsyncSession, job: Job, _now: datetime) -> None:
    segment = LogSegment(
        job_id=job.id,
        project_id=job.project_id,
        fence=job.fence,
        number=number,
        storage_key=stored.key,
        bytes=stored.bytes,
    )
    session.add(segment)
