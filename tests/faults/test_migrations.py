"""F26: processes that start together, one of which dies while it migrates; and a schema of another version."""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from app.db import migrations
from tests.backends import Site
from tests.e2e.processes import Installation
from tests.servers.postgres import Postgres

_UPGRADE = """
import sys
from app.db import migrations
print("begins", flush=True)
migrations.upgrade(sys.argv[1])
"""
_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgresql"])
def unmigrated(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """An installation without a schema, on each of the databases."""
    if request.param == "sqlite":
        yield Site(tmp_path / "data")
        return
    server: Postgres = request.getfixturevalue("postgres_server")
    name = f"unmigrated-{next(_numbers)}"
    server.create(name)
    yield Site(tmp_path / "data", {"database_url": server.url(name)})
    server.drop(name)


def test_f26_three_migrate_at_once_and_one_is_killed(unmigrated: Site, instant: float) -> None:
    url = unmigrated.settings().resolved_database_url
    three = [
        subprocess.Popen([sys.executable, "-c", _UPGRADE, url], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in three:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
    time.sleep(instant)
    three[0].kill()
    for process in three:
        process.communicate(timeout=60)
    assert [process.returncode for process in three[1:]] == [0, 0]
    migrations.require_current(url)


def test_f26_no_process_starts_on_the_schema_of_a_newer_version(unmigrated: Site) -> None:
    def mark(connection: Connection) -> None:
        connection.execute(text("update alembic_version set version_num = '9999'"))

    url = unmigrated.settings().resolved_database_url
    migrations.upgrade(url)
    migrations.run(url, mark)
    refused = Installation.at(unmigrated).hone("serve", "--api-only", "--port", "0")
    assert refused.returncode == 1
    assert "a newer one has made it" in refused.stdout
    assert "Traceback" not in refused.stdout + refused.stderr
