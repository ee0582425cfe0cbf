"""The database and its two kinds of session: reading, and writing in one short transaction."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from app.db import drivers
from app.db.outage import is_outage
from app.errors import Unavailable

_log = logging.getLogger(__name__)


class Database:
    """Opens sessions on one engine. `close` must be awaited at the end.

    A session lives `timeout_seconds` at most, the wait for a connection or for SQLite's write lock included.
    Whatever keeps it from its end, but may pass, is raised as Unavailable: the database being away, all
    connections being taken, a deadlock. SQLite allows one writer: a write session takes the write lock at its
    beginning, because a transaction that reads first and writes later fails with "database is locked" under
    load. Writers of this process queue on an asyncio lock, so that only other processes are waited for by
    polling.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 3.0, max_connections: int = 20) -> None:
        self.is_sqlite = drivers.is_sqlite(url)
        self._timeout_seconds = timeout_seconds
        self.engine: AsyncEngine = (
            drivers.sqlite(url, timeout_seconds=timeout_seconds)
            if self.is_sqlite
            else drivers.postgresql(url, timeout_seconds=timeout_seconds, max_connections=max_connections)
        )
        self._writing = asyncio.Lock()
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        async with _answering(None if self.is_sqlite else self._timeout_seconds), self._sessions() as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Commits at the end of the block, rolls back when it raises. Await nothing slow inside."""
        if not self.is_sqlite:
            async with _answering(self._timeout_seconds), self._sessions.begin() as session:
                yield session
            return
        # A thread that waits for SQLite cannot be interrupted, so both waits are measured beforehand.
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._timeout_seconds
        async with _answering(None):
            async with asyncio.timeout_at(give_up_at):
                await self._writing.acquire()
            try:
                async with self._sessions.begin() as session:
                    left = max(0.0, give_up_at - loop.time())
                    await session.connection(execution_options={drivers.WRITES: True, drivers.WAIT_SECONDS: left})
                    yield session
            finally:
                self._writing.release()

    async def close(self) -> None:
        await self.engine.dispose()


@asynccontextmanager
async def _answering(timeout_seconds: float | None) -> AsyncIterator[None]:
    task = asyncio.current_task()
    assert task is not None
    cancelled_before = task.cancelling()
    try:
        async with asyncio.timeout(timeout_seconds):
            yield
    except Exception as error:
        if not is_outage(error):
            raise
        # A driver whose connection is lost while it is being cancelled tells of the loss alone; whoever cancelled it
        # would wait for ever for a loop that tries again.
        if task.cancelling() > cancelled_before:
            raise asyncio.CancelledError from error
        _log.warning("the database does not answer: %s", _reason(error))
        raise Unavailable("The database is not available at the moment. Please try again.") from error


def _reason(error: Exception) -> str:
    """The driver's own sentence, without the statement."""
    return str(getattr(error, "orig", None) or error) or "it took too long"
