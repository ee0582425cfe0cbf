"""Bringing the schema up to date, one process at a time, and telling whether it is."""

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url

_SCRIPTS = Path(__file__).resolve().parents[2] / "migrations"
_ADVISORY_LOCK = 0x484F4E45  # "HONE"


class OldSchema(Exception):
    """The database's schema is not the one this version of Hone works with."""


def upgrade(url: str) -> None:
    """Upgrade to the newest schema. Several processes may call this at once: one works, the others wait."""
    engine = _engine(url)
    try:
        with _lock(engine) as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    finally:
        engine.dispose()


def require_current(url: str) -> None:
    """Raises OldSchema with a sentence that says what to do."""
    if make_url(url).get_backend_name() == "sqlite" and not Path(make_url(url).database or "").exists():
        raise OldSchema("There is no database yet. Run `hone migrate` (or `hone serve` once) to make it.")
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    newest = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if current != newest:
        raise OldSchema(
            f"The database is at schema {current or 'none'}, this version of Hone needs {newest}. "
            "Stop all Hone processes and run `hone migrate`."
        )


def synchronous_url(url: str) -> str:
    """The same database for Alembic, which is not asynchronous."""
    return url.replace("sqlite+aiosqlite:", "sqlite:").replace("postgresql+asyncpg:", "postgresql+psycopg:")


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config


def _engine(url: str) -> Engine:
    engine = create_engine(synchronous_url(url), hide_parameters=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _wait_for_others(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA busy_timeout=30000")

    return engine


@contextmanager
def _lock(engine: Engine) -> Iterator[Connection]:
    if engine.dialect.name == "sqlite":
        database = Path(engine.url.database or "")
        database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with database.with_suffix(".migrating").open("w") as lock_file:
            fcntl.flock(lock_file, fcntl.LOCK_EX)
            with engine.connect() as connection:
                yield connection
        return
    with engine.connect() as holder, engine.connect() as connection:
        holder.execute(text("select pg_advisory_lock(:id)"), {"id": _ADVISORY_LOCK})
        try:
            yield connection
        finally:
            holder.execute(text("select pg_advisory_unlock(:id)"), {"id": _ADVISORY_LOCK})
