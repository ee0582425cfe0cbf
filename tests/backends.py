"""Where the rows, wakes and objects of tests live: on this machine alone, or on the servers of a production.

`pytest --backends embedded` (the default) or `--backends production` chooses for a whole run. Tests take a
`site` or what is built on one, and do not know the difference.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from app import sealing
from app.db import migrations
from app.settings import Settings
from tests.servers import postgres, redis, s3
from tests.servers.postgres import Postgres
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server

# The deadline of production is for tests of faults: other tests must not fail on a machine that is busy.
_PATIENT = {"database_timeout_seconds": "30"}


@dataclass(frozen=True)
class Site:
    """One installation: its data directory, and what must be set beside it, by the names of the settings."""

    data: Path
    places: dict[str, str] = field(default_factory=dict)

    def settings(self, **more: Any) -> Settings:
        return Settings(data_directory=self.data, **{**_PATIENT, **self.places, **more})

    @property
    def environment(self) -> dict[str, str]:
        return {f"HONE_{name.upper()}": value for name, value in (_PATIENT | self.places).items()}


class Backends(Protocol):
    def new(self, data: Path, *, migrated: bool = True) -> Site:
        """An empty installation."""
        ...

    def copy(self, site: Site, data: Path) -> Site:
        """A copy of an installation that no process works on."""
        ...

    def discard(self, site: Site) -> None:
        """Remove what an installation has left outside of its data directory."""
        ...


class Embedded:
    """SQLite and objects in the data directory, wakes in the process."""

    def __init__(self, directory: Path) -> None:
        self._migrated = Site(directory)  # to be copied: migrating takes longer than most tests
        migrations.upgrade(self._migrated.settings().resolved_database_url)

    def new(self, data: Path, *, migrated: bool = True) -> Site:
        data.mkdir(parents=True)
        if migrated:
            shutil.copy(self._migrated.data / "hone.db", data / "hone.db")
        return Site(data)

    def copy(self, site: Site, data: Path) -> Site:
        shutil.copytree(site.data, data)
        return Site(data)

    def discard(self, site: Site) -> None:
        """All of it is in the data directory."""


class Production:
    """Each installation has a database and a bucket of its own on a PostgreSQL, a Redis and an S3 that all share."""

    def __init__(self, server: Postgres, redis: RedisServer, s3: S3Server) -> None:
        self._postgres = server
        self._redis = redis
        self._s3 = s3
        self._numbers = itertools.count()
        self._key = sealing.new_key()
        server.create("migrated")
        migrations.upgrade(server.url("migrated"))

    def new(self, data: Path, *, migrated: bool = True) -> Site:
        data.mkdir(parents=True)
        return self._site(data, template="migrated" if migrated else "template1")

    def copy(self, site: Site, data: Path) -> Site:
        shutil.copytree(site.data, data)
        made = self._site(data, template=self._database(site))
        self._s3.copy(site.places["s3_bucket"], made.places["s3_bucket"])
        return made

    def discard(self, site: Site) -> None:
        self._postgres.drop(self._database(site))

    def _site(self, data: Path, *, template: str) -> Site:
        number = next(self._numbers)
        name = f"site-{number}"
        self._postgres.create(name, template=template)
        wakes = self._redis.url_through(self._redis.port, database=number)
        objects = self._s3.settings(self._s3.new_bucket())
        places = {"database_url": self._postgres.url(name), "redis_url": wakes, "secret_keys": self._key}
        return Site(data, {**places, **objects})

    def _database(self, site: Site) -> str:
        return site.places["database_url"].rpartition("/")[2]


@contextmanager
def embedded(directory: Path) -> Iterator[Backends]:
    yield Embedded(directory)


@contextmanager
def production(directory: Path) -> Iterator[Backends]:
    with (
        postgres.running() as server,
        redis.running(directory, password="a-secret-of-redis") as wakes,
        s3.moto() as objects,
    ):
        yield Production(server, wakes, objects)


KINDS: dict[str, Callable[[Path], Any]] = {"embedded": embedded, "production": production}
