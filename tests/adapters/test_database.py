"""The database: writers that do not fail each other, one migration history, and a schema that is the models'."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest
from alembic import command
from sqlalchemy import Connection, text
from sqlalchemy.exc import StatementError

from app.db import drivers, migrations
from app.db.models import ApiKey, Organization
from app.db.queries import end_silent_transactions, server_rows
from app.ids import new_id, utc_now
from app.resources import Resources
from tests.backends import Site

_UPGRADE = "import sys; from app.db import migrations; migrations.upgrade(sys.argv[1])"


def url_of(site: Site) -> str:
    return site.settings().resolved_database_url


async def test_read_then_write_by_many_does_not_lock(resources: Resources) -> None:
    async def rename(number: int) -> None:
        async with resources.write() as session:
            organization = (await session.scalars(server_rows(Organization).with_for_update())).one()
            await asyncio.sleep(0)
            organization.name = f"{organization.name}{number % 10}"

    async with resources.write() as session:
        session.add(Organization(id=new_id("org-"), name="", created_at=utc_now()))
    await asyncio.gather(*(rename(number) for number in range(40)))
    async with resources.read() as session:
        assert len((await session.scalars(server_rows(Organization))).one().name) == 40


async def test_a_write_session_that_raises_leaves_nothing(resources: Resources) -> None:
    async def fail_after_writing() -> None:
        async with resources.write() as session:
            session.add(Organization(id="org-x", name="x", created_at=utc_now()))
            await session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_after_writing()
    async with resources.read() as session:
        assert (await session.scalars(server_rows(Organization))).all() == []


@pytest.mark.parametrize("way", ["read", "write"])
async def test_a_cancellation_is_not_taken_for_an_outage(resources: Resources, way: str) -> None:
    """What tries again when the database is away would else never end."""
    session_is_open = asyncio.Event()

    async def work() -> None:
        async with resources.read() if way == "read" else resources.write():
            session_is_open.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ConnectionResetError("connection was closed in the middle of operation") from None

    task = asyncio.create_task(work())
    await session_is_open.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_transaction_of_a_process_that_sleeps_before_it_executes_is_ended(resources: Resources) -> None:
    """PostgreSQL's own limits count no time between the preparation of a statement and its execution."""
    if resources.database.is_sqlite:
        pytest.skip("SQLite's lock goes with its process")
    url = resources.settings.resolved_database_url
    limits = dict.fromkeys(("statement_timeout", "idle_in_transaction_session_timeout"), "500")
    sleeper, other = [
        await asyncpg.connect(url, server_settings={"application_name": "hone", **limits}) for _ in range(2)
    ]
    try:
        await sleeper.execute("BEGIN; LOCK TABLE organizations")
        await sleeper.prepare("SELECT count(*) FROM organizations")
        async with resources.read() as session:
            assert await end_silent_transactions(session, older_than_seconds=1.5) == 0
        await asyncio.sleep(2)
        await other.execute("BEGIN")
        await other.prepare("SELECT 1")
        async with resources.read() as session:
            assert await end_silent_transactions(session, older_than_seconds=1.5) == 1
        await other.execute("ROLLBACK")
        async with resources.write() as session:
            session.add(Organization(id=new_id("org-"), name="x", created_at=utc_now()))
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await sleeper.execute("COMMIT")
    finally:
        for connection in (sleeper, other):
            await connection.close()


async def test_an_error_does_not_show_what_was_bound(resources: Resources) -> None:
    async def add_key() -> None:
        async with resources.write() as session:
            session.add(
                ApiKey(
                    id="key_x",
                    project_id="proj_missing",
                    name="k",
                    hint="h",
                    key_hash="a-secret-hash",
                    created_at=utc_now(),
                )
            )

    with pytest.raises(StatementError) as caught:
        await add_key()
    assert "a-secret-hash" not in str(caught.value)


async def test_times_come_back_in_utc(resources: Resources) -> None:
    now = utc_now()
    async with resources.write() as session:
        session.add(Organization(id="org-x", name="x", created_at=now))
    async with resources.read() as session:
        assert (await session.get_one(Organization, "org-x")).created_at == now


def test_three_processes_may_migrate_at_once(unmigrated_site: Site) -> None:
    def upgrade(_: int) -> int:
        return subprocess.run([sys.executable, "-c", _UPGRADE, url_of(unmigrated_site)], check=False).returncode

    with ThreadPoolExecutor() as three:
        assert list(three.map(upgrade, range(3))) == [0, 0, 0]
    migrations.require_current(url_of(unmigrated_site))


def test_the_schema_is_that_of_the_models_and_can_be_taken_back(site: Site) -> None:
    def take_back_and_again(connection: Connection) -> None:
        config = migrations.alembic_config()
        config.attributes["connection"] = connection
        command.check(config)
        command.downgrade(config, "base")
        command.upgrade(config, "head")

    migrations.run(url_of(site), take_back_and_again)
    migrations.require_current(url_of(site))


def test_a_migration_that_fails_leaves_nothing(unmigrated_site: Site) -> None:
    def half_way(connection: Connection) -> None:
        config = migrations.alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError):
        migrations.run(url_of(unmigrated_site), half_way)
    migrations.upgrade(url_of(unmigrated_site))
    migrations.require_current(url_of(unmigrated_site))


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (None, "at schema none, .* Stop all Hone processes and run `hone migrate`"),
        ("9999", "at schema 9999, which this version of Hone does not know: a newer one"),
    ],
)
def test_another_schema_is_told_in_a_sentence(site: Site, found: str | None, sentence: str) -> None:
    def mark(connection: Connection) -> None:
        connection.execute(text("delete from alembic_version"))
        if found is not None:
            connection.execute(text("insert into alembic_version values (:found)"), {"found": found})

    migrations.run(url_of(site), mark)
    with pytest.raises(migrations.OldSchema, match=sentence):
        migrations.require_current(url_of(site))


def test_an_empty_database_is_told_in_a_sentence(unmigrated_site: Site) -> None:
    with pytest.raises(migrations.OldSchema, match=r"[Rr]un `hone migrate`"):
        migrations.require_current(url_of(unmigrated_site))


def test_only_a_database_of_this_machine_is_upgraded_by_itself(unmigrated_site: Site) -> None:
    url = url_of(unmigrated_site)
    if drivers.is_sqlite(url):
        migrations.prepare(url)
        migrations.require_current(url)
    else:
        with pytest.raises(migrations.OldSchema):
            migrations.prepare(url)
