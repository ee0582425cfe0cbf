"""The database: writers that do not fail each other, one migration history, and a schema that is the models'."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import create_engine, text
from sqlalchemy.exc import StatementError

from app.db import migrations
from app.db.models import ApiKey, Organization
from app.db.queries import server_rows
from app.ids import new_id, utc_now
from app.resources import Resources
from app.settings import Settings

_UPGRADE = "import sys; from app.db import migrations; migrations.upgrade(sys.argv[1])"


def url_of(directory: Path) -> str:
    return Settings(data_directory=directory).resolved_database_url


async def test_read_then_write_by_many_does_not_lock(resources: Resources) -> None:
    async def rename(number: int) -> None:
        async with resources.write() as session:
            organization = (await session.scalars(server_rows(Organization))).one()
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


def test_three_processes_may_migrate_at_once(tmp_path: Path) -> None:
    def upgrade(_: int) -> int:
        return subprocess.run([sys.executable, "-c", _UPGRADE, url_of(tmp_path)], check=False).returncode

    with ThreadPoolExecutor() as three:
        assert list(three.map(upgrade, range(3))) == [0, 0, 0]
    migrations.require_current(url_of(tmp_path))


def test_the_schema_is_that_of_the_models_and_can_be_taken_back(tmp_path: Path) -> None:
    url = url_of(tmp_path)
    migrations.upgrade(url)
    engine = create_engine(migrations.synchronous_url(url))
    with engine.connect() as connection:
        config = migrations.alembic_config()
        config.attributes["connection"] = connection
        command.check(config)
        command.downgrade(config, "base")
        command.upgrade(config, "head")
        connection.commit()
    engine.dispose()
    migrations.require_current(url)


def test_an_old_schema_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(migrations.OldSchema, match="no database yet"):
        migrations.require_current(url_of(tmp_path))
    migrations.upgrade(url_of(tmp_path))
    engine = create_engine(migrations.synchronous_url(url_of(tmp_path)))
    with engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = '0000'"))
    engine.dispose()
    with pytest.raises(migrations.OldSchema, match="at schema 0000"):
        migrations.require_current(url_of(tmp_path))
