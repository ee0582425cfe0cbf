"""Bringing the schema up to date, one process at a time, and telling whether it is."""

import asyncio
import fcntl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import drivers

_SCRIPTS = Path(__file__).resolve().parents[2] / "migrations"
_ADVISORY_LOCK = 0x484F4E45  # "HONE"


class OldSchema(Exception):
    """The database's schema is not the one this version of Hone works with."""


class NoDatabase(Exception):
    """The database cannot be reached; the message says why."""


def prepare(url: str) -> None:
    """What a command does that may find an older schema: it upgrades SQLite's file, which is this machine's own.

    A PostgreSQL server is shared with processes that may still run another version, so there it only looks.
    """
    if drivers.is_sqlite(url):
        upgrade(url)
    else:
        require_current(url)


def upgrade(url: str) -> None:
    """Upgrade to the newest schema. Several processes may call this at once: one works, the others wait."""
    with _file_lock(url):
        run(url, _upgrade)


def require_current(url: str) -> None:
    """Raises OldSchema with a sentence that says what to do."""
    if drivers.is_sqlite(url) and not Path(make_url(url).database or "").exists():
        raise OldSchema("There is no database yet. Run `hone migrate` (or `hone serve` once) to make it.")
    run(url, _require_current)


def run(url: str, action: Callable[[Connection], None]) -> None:
    """Call `action` in one transaction. Raises NoDatabase. Not to be called where an event loop runs."""

    async def connect_and_run() -> None:
        async with _transaction(url) as connection:
            await connection.run_sync(action)

    asyncio.run(connect_and_run())


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # held until the end of the transaction
        connection.execute(text("select pg_advisory_xact_lock(:id)"), {"id": _ADVISORY_LOCK})
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _require_current(connection: Connection) -> None:
    current = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(alembic_config())
    newest = scripts.get_current_head()
    if current == newest:
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise OldSchema(
            f"The database is at schema {current}, which this version of Hone does not know: a newer one has made it. "
            f"This version works with {newest}; install the newer one."
        )
    raise OldSchema(
        f"The database is at schema {current or 'none'}, this version of Hone needs {newest}. "
        "Stop all Hone processes and run `hone migrate`."
    )


@asynccontextmanager
async def _transaction(url: str) -> AsyncIterator[AsyncConnection]:
    engine = drivers.for_migrations(url)
    try:
        try:
            connection = await engine.connect()
        except DBAPIError as error:
            raise NoDatabase(f"The database does not answer: {error.orig}.") from error
        try:
            connection = await connection.execution_options(**{drivers.WRITES: True})
            async with connection.begin():
                yield connection
        finally:
            await connection.close()
    finally:
        await engine.dispose()


def _file_lock(url: str) -> AbstractContextManager[None]:
    """For SQLite, whose own lock a second process would give up to wait for."""
    return _locked(Path(make_url(url).database or "")) if drivers.is_sqlite(url) else nullcontext()


@contextmanager
def _locked(database: Path):
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with database.with_suffix(".migrating").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        yield
