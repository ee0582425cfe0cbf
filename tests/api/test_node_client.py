"""The official Node client, unmodified, against the real server."""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.db.models import Job, JobStatus
from app.db.queries import scoped
from tests import factories
from tests.api import sdk_methods
from tests.backends import Backends
from tests.conftest import Served, Tenant, serve, tenant_of

_DIRECTORY = Path(__file__).resolve().parents[1] / "node"


async def test_the_node_client_works(tenant: Tenant) -> None:
    await install()
    await factories.base_model(tenant.resources, factories.BASE_MODEL_WITH_SLASH)
    done, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    for step in (12, 24):
        await factories.checkpoint(tenant.resources, done, step=step)
    environment = {
        "OPENAI_BASE_URL": f"{tenant.url}/v1",
        "OPENAI_API_KEY": tenant.key,
        "HONE_JOB": done.id,
        "HONE_MODEL": model.id,
        "HONE_BASE": factories.BASE_MODEL_WITH_SLASH,
    }
    output = await run("node", "client.mjs", environment=environment)
    job_id = json.loads(output.splitlines()[-1])["job"]
    async with tenant.resources.read() as session:
        job = (await session.scalars(scoped(Job, tenant.principal).where(Job.id == job_id))).one()
    assert job.status == JobStatus.CANCELLED


@pytest.fixture
def near_and_limited(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """A server that may call this machine, and one of a request a minute."""
    with ExitStack() as servers:
        chosen: list[dict[str, Any]] = [{"outgoing_allowed_networks": "127.0.0.0/8"}, {"requests_per_minute": 1}]
        yield [
            servers.enter_context(
                contextmanager(serve)(backends.new(tmp_path_factory.mktemp("made") / "data").settings(**settings))
            )
            for settings in chosen
        ]


async def test_every_method_of_the_node_client(near_and_limited: list[Served]) -> None:
    await install()
    near, limited = near_and_limited
    async with tenant_of(near) as tenant, tenant_of(limited) as hurried:
        there = await sdk_methods.scene(tenant.resources, tenant.principal, receiver="")
        environment = {
            "OPENAI_BASE_URL": f"{tenant.url}/v1",
            "OPENAI_API_KEY": tenant.key,
            "HONE_JOB": there.done,
            "HONE_QUEUED": there.queued,
            "HONE_MODEL": there.model,
            "HONE_BASE": factories.BASE_MODEL,
            "HONE_PROJECT": there.project,
            "HONE_LIMITED_URL": f"{hurried.url}/v1",
            "HONE_LIMITED_KEY": hurried.key,
        }
        output = await run("node", "every-method.mjs", environment=environment)
    assert json.loads(output.splitlines()[-1])["methods"] > 30


async def install() -> None:
    """`npm ci`, unless the very versions of the lock file are there already."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.fail("This test needs Node.js 20 or newer with npm on the PATH; see https://nodejs.org.")
    wanted = json.loads((_DIRECTORY / "package-lock.json").read_text())["packages"]
    installed = _DIRECTORY / "node_modules" / ".package-lock.json"
    if installed.exists():
        found = json.loads(installed.read_text())["packages"]
        if all(
            found.get(name, {}).get("integrity") == facts.get("integrity") for name, facts in wanted.items() if name
        ):
            return
    await run("npm", "ci", environment={})


async def run(*command: str, environment: dict[str, str]) -> str:
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=_DIRECTORY,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        output, problems = await child.communicate()
    assert child.returncode == 0, f"{' '.join(command)} failed:\n{problems.decode()[-4000:]}"
    return output.decode()
