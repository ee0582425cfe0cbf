"""Everything that is opened once and closed at the end: database, storage, queue."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from app.db import after_commit
from app.db.engine import Database
from app.queue.base import Queue
from app.queue.memory import MemoryQueue
from app.settings import Settings
from app.storage.base import Storage
from app.storage.local import LocalStorage

_log = logging.getLogger(__name__)
_AFTER_COMMIT_SECONDS = 1.0


@dataclass(frozen=True)
class Resources:
    settings: Settings
    database: Database
    storage: Storage
    queue: Queue

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session for reading."""
        return self.database.read()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session that commits at the end of the block; what the block asked for after its commit follows.

        A crash or a fault between the two is harmless: slots look for work each second anyway, and an
        object that no row refers to is only space.
        """
        async with self.database.write() as session:
            yield session
        for pool in after_commit.wakes(session):
            await _quietly("wake", self.queue.wake(pool))
        for key in after_commit.doomed_objects(session):
            await _quietly("delete", self.storage.delete(key))


async def _quietly(what: str, action: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(_AFTER_COMMIT_SECONDS):
            await action
    except (OSError, TimeoutError):
        _log.warning("%s after a commit failed", what, exc_info=True)


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(
        settings.resolved_database_url,
        timeout_seconds=settings.database_timeout_seconds,
        max_connections=settings.database_connections,
    )
    try:
        async with open_queue(settings) as queue:
            yield Resources(settings, database, LocalStorage(settings.data / "objects"), queue)
    finally:
        await database.close()


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[Queue]:
    if settings.redis_url is None:
        yield MemoryQueue()
        return
    from app.queue.redis import RedisQueue  # here, so that who does without Redis need not load its client

    async with RedisQueue(settings.redis_url) as queue:
        yield queue
