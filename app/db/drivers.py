"""The two databases' engines: SQLite through aiosqlite, PostgreSQL through asyncpg."""

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

WRITES = "hone_writes"
WAIT_SECONDS = "hone_wait_seconds"
_CONNECT_SECONDS = 2
_PING_SECONDS = 1.0
APPLICATION, _MIGRATION = "hone", "hone migrate"
_ROLLBACK_SECONDS = 0.75
_CLOSE_SECONDS = 0.25
_SHARED: dict[str, Any] = {
    "hide_parameters": True,
    # SQLite compares the keys of JSON as they are written, so they must not be written with escapes.
    "json_serializer": partial(json.dumps, ensure_ascii=False),
}


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite")


def sqlite(url: str, *, timeout_seconds: float, foreign_keys: bool = True, **options: Any) -> AsyncEngine:
    """Transactions begin as a connection's options say: with WRITES they take the write lock at once, waiting
    for it WAIT_SECONDS at most."""
    engine = create_async_engine(url, connect_args={"timeout": timeout_seconds}, **_SHARED, **options)
    database = engine.url.database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pragmas = ("journal_mode=WAL", "synchronous=FULL", f"foreign_keys={'ON' if foreign_keys else 'OFF'}")

    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing of its own: see _begin
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        chosen = connection.get_execution_options()
        if WAIT_SECONDS in chosen:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={int(chosen[WAIT_SECONDS] * 1000)}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if chosen.get(WRITES, False) else "BEGIN")

    return engine


def postgresql(url: str, *, timeout_seconds: float, max_connections: int) -> AsyncEngine:
    """A pool of connections that neither a silent server nor a forgotten client can hold for long."""
    milliseconds = int(timeout_seconds * 1000)
    # A transaction whose client was cut off keeps its locks only a little longer than its client could have waited.
    limits = {
        "statement_timeout": str(milliseconds),
        "idle_in_transaction_session_timeout": str(milliseconds + 1000),
    }
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=partial(_connect_postgresql, url, limits),
        pool_pre_ping=True,
        pool_size=max_connections,
        max_overflow=0,
        pool_timeout=timeout_seconds,
        pool_use_lifo=True,
        **_SHARED,
    )


def for_migrations(url: str) -> AsyncEngine:
    """Waits for others as long as they need. SQLite rebuilds tables to alter them, so foreign keys are off."""
    if is_sqlite(url):
        return sqlite(url, timeout_seconds=30, foreign_keys=False, poolclass=NullPool)
    creator = partial(_connect_postgresql, url, {"application_name": _MIGRATION})
    return create_async_engine("postgresql+asyncpg://", async_creator=creator, poolclass=NullPool, **_SHARED)


class _Connection(asyncpg.Connection):
    """Gives up a server that does not answer sooner than a request's patience ends."""

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        if query != ";":  # SQLAlchemy's ping of a connection from the pool
            return await super().fetchrow(query, *args, **options)
        try:
            return await super().fetchrow(query, *args, **(options | {"timeout": _PING_SECONDS}))
        except TimeoutError as error:
            self.terminate()  # so that the pool makes a new one, and forgets the others of its age
            raise asyncpg.InterfaceError("connection is closed") from error

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        if query != "ROLLBACK;":
            return await super().execute(query, *args, **options)
        # SQLAlchemy lets nothing interrupt a session's end, and asyncpg's own limit does not count its wait for the
        # request, sent on a connection of its own, that cancels a query before.
        try:
            async with asyncio.timeout(_ROLLBACK_SECONDS):
                return await super().execute(query, *args, **options)
        except TimeoutError as error:
            self.terminate()
            raise asyncpg.InterfaceError("connection is closed") from error

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the signature of its base
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await super().close(timeout=_CLOSE_SECONDS)
        except (TimeoutError, OSError):
            self.terminate()


async def _connect_postgresql(url: str, server_settings: dict[str, str]) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(
            url,
            timeout=_CONNECT_SECONDS,
            server_settings={"application_name": APPLICATION, **server_settings},
            connection_class=_Connection,
        )
    except (OSError, asyncpg.PostgresError) as error:
        reason = str(error) or f"no answer within {_CONNECT_SECONDS} seconds"
        raise asyncpg.InterfaceError(f"cannot connect: {reason}") from error
