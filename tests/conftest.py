"""Fixtures that many tests share: a real server on a free port, a project of one's own, the official client."""

import asyncio
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

from app.api import connections
from app.auth import Principal, Role
from app.main import create_app
from app.resources import Resources, open_resources
from app.settings import Settings
from tests import factories
from tests.backends import KINDS, Backends, Site
from tests.servers import postgres, required, s3
from tests.servers.postgres import Postgres


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backends", choices=list(KINDS), default="embedded", help="Where the tests keep their rows.")
    parser.addoption("--faults", type=int, default=1, help="At how many seeded instants each fault strikes.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a production's servers, only what touches them is asked again. The faults bring servers of their own."""
    if config.getoption("--backends") == "embedded":
        return
    faults = Path(__file__).parent / "faults"
    chosen = [
        item for item in items if "backends" in getattr(item, "fixturenames", ()) or item.path.is_relative_to(faults)
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


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

    def http(self, key: str | None = None) -> httpx.AsyncClient:
        """For what the official client does not do; with another key than the tenant's first."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20)

    async def openai(self, *, role: Role = Role.OWNER, scopes: list[str] | None = None) -> AsyncOpenAI:
        """A client that holds another key of the project."""
        key = await factories.key(self.resources, self.principal, role=role, scopes=scopes)
        return self.client.with_options(api_key=key)

    async def administrator(self) -> AsyncOpenAI:
        """A client that holds an admin key of the organization, and nothing else."""
        admin_key = await factories.admin_key(self.resources, self.principal)
        return self.client.with_options(api_key=admin_key, admin_api_key=admin_key)


@pytest.fixture(scope="session")
def backends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    """Those that the run was asked to use."""
    kind = str(request.config.getoption("--backends"))
    if kind == "production":
        for package in required.missing():
            required.skip_without(package)
    with KINDS[kind](tmp_path_factory.mktemp("backends")) as chosen:
        yield chosen


@pytest.fixture
def site(backends: Backends, tmp_path: Path) -> Iterator[Site]:
    """An empty installation of the test's own."""
    made = backends.new(tmp_path / "data")
    yield made
    backends.discard(made)


@pytest.fixture
def unmigrated_site(backends: Backends, tmp_path: Path) -> Iterator[Site]:
    made = backends.new(tmp_path / "data", migrated=False)
    yield made
    backends.discard(made)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL of these tests' own, to restart and to break."""
    required.skip_without("postgresql")
    with postgres.running() as server:
        yield server


@pytest.fixture(scope="session")
def served(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = backends.new(tmp_path_factory.mktemp("served") / "data")
    yield from serve(made.settings(max_file_bytes=4 * 1024**2))


@pytest.fixture
async def resources(site: Site) -> AsyncIterator[Resources]:
    """An empty database and storage, without a server."""
    async with open_resources(site.settings()) as opened:
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


@pytest.fixture
async def neighbour(served: Served, tenant: Tenant) -> AsyncIterator[Tenant]:
    """Another project of the tenant's organization."""
    async with tenant_of(served, beside=tenant.principal) as made:
        yield made


@asynccontextmanager
async def tenant_of(served: Served, *, beside: Principal | None = None) -> AsyncIterator[Tenant]:
    async with open_resources(served.settings) as opened:
        principal, key = await factories.project(opened, beside=beside)
        await factories.base_model(opened)
        base_url = f"{served.url}/v1"
        async with AsyncOpenAI(
            api_key=key, base_url=base_url, max_retries=0, _strict_response_validation=True
        ) as client:
            yield Tenant(client, key, principal, opened, served.url)


def serve(settings: Settings) -> Iterator[Served]:
    """Runs the API until the generator is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    server: list[uvicorn.Server] = []
    ready = threading.Event()

    async def run() -> None:
        async with open_resources(settings) as opened:
            config = connections.config(create_app(opened), most=settings.connections, lifespan="off")
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
