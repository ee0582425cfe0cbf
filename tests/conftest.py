"""Fixtures that many tests share: a real server on a free port, a project of one's own, the official client."""

import asyncio
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from openai import AsyncOpenAI

from app.auth import Principal
from app.db import migrations
from app.main import create_app
from app.resources import Resources, open_resources
from app.settings import Settings
from tests import factories
from tests.servers import s3


@dataclass(frozen=True)
class Served:
    """A server that runs in a thread with an event loop of its own, as it does in a process of its own."""

    url: str
    settings: Settings


@dataclass(frozen=True)
class Tenant:
    """A project and a client that holds its key. `resources` open the server's database and storage."""

    client: AsyncOpenAI
    key: str
    principal: Principal
    resources: Resources
    url: str

    def http(self) -> httpx.AsyncClient:
        """For what the official client does not do."""
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=20)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = Settings(data_directory=tmp_path_factory.mktemp("served"), max_file_bytes=4 * 1024**2)
    yield from serve(settings)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("database") / "hone.db"
    migrations.upgrade(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
async def resources(tmp_path: Path, empty_database: Path) -> AsyncIterator[Resources]:
    """An empty database and storage, without a server."""
    settings = Settings(data_directory=tmp_path / "data")
    settings.data.mkdir()
    shutil.copy(empty_database, settings.data / "hone.db")
    async with open_resources(settings) as opened:
        yield opened


@pytest.fixture(scope="session")
def moto_server() -> Iterator[s3.MotoServer]:
    with s3.moto() as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    with s3.rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture
async def tenant(served: Served) -> AsyncIterator[Tenant]:
    async with tenant_of(served) as made:
        yield made


@pytest.fixture
async def other_tenant(served: Served) -> AsyncIterator[Tenant]:
    async with tenant_of(served) as made:
        yield made


@asynccontextmanager
async def tenant_of(served: Served) -> AsyncIterator[Tenant]:
    async with open_resources(served.settings) as opened:
        principal, key = await factories.project(opened)
        await factories.base_model(opened)
        base_url = f"{served.url}/v1"
        async with AsyncOpenAI(
            api_key=key, base_url=base_url, max_retries=0, _strict_response_validation=True
        ) as client:
            yield Tenant(client, key, principal, opened, served.url)


def serve(settings: Settings) -> Iterator[Served]:
    """Runs the API until the generator is closed. Its database is migrated first."""
    migrations.upgrade(settings.resolved_database_url)
    listener = socket.create_server(("127.0.0.1", 0))
    server: list[uvicorn.Server] = []
    ready = threading.Event()

    async def run() -> None:
        async with open_resources(settings) as opened:
            config = uvicorn.Config(create_app(opened), log_config=None, access_log=False, lifespan="off")
            server.append(uvicorn.Server(config))
            ready.set()
            await server[0].serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", settings)
    server[0].should_exit = True
    thread.join(10)
    assert not thread.is_alive()
