"""Faults of storage, F8 and F18 to F21: told as such, nothing half kept, the service goes on."""

import asyncio
import hashlib
import os
import resource
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from openai import APIError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, InternalServerError, OpenAI

from app.db import migrations
from app.resources import open_resources
from app.settings import Settings
from tests import factories
from tests.backends import Backends, Site
from tests.conftest import Served, serve
from tests.e2e.processes import BASE, Installation, Process, create_job, messages, metrics, wait_for, wait_for_end
from tests.history import keeping
from tests.history.recorder import History
from tests.servers.s3 import MotoServer
from tests.tiny import build_tiny_base
from worker import tidying

LARGE = os.urandom(1 << 20) * 20  # three parts
EVERYTHING = timedelta(seconds=-5)


@pytest.fixture
def bucket(moto_server: MotoServer) -> Iterator[str]:
    yield moto_server.new_bucket()
    moto_server.order()


@pytest.fixture
def served_on_s3(on_s3: Site) -> Iterator[Served]:
    """The API with its objects in moto, which it gives up after two seconds."""
    yield from serve(on_s3.settings(s3_timeout_seconds=2))


@pytest.fixture
async def client(served_on_s3: Served, moto_server: MotoServer) -> AsyncIterator[AsyncOpenAI]:
    async with open_resources(served_on_s3.settings) as resources:
        _, key = await factories.project(resources)
    history = History()
    recorded = DefaultAsyncHttpxClient(event_hooks=history.async_hooks)
    base_url = f"{served_on_s3.url}/v1"
    async with AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=recorded) as client:
        yield client
    moto_server.order()
    await keeping.assert_kept_by_server(served_on_s3.settings, history)


@pytest.fixture
def on_s3(moto_server: MotoServer, bucket: str, site: Site) -> Site:
    return replace(site, places={**site.places, **moto_server.settings(bucket)})


@pytest.fixture(scope="module")
def working(backends: Backends, moto_server: MotoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server that trains, with its objects in moto."""
    directory = tmp_path_factory.mktemp("working")
    site = backends.new(directory / "data")
    installation = Installation.at(replace(site, places=site.places | moto_server.settings(moto_server.new_bucket())))
    added = installation.hone("models", "add", BASE, "--source", str(build_tiny_base(directory / "base")))
    assert added.returncode == 0, added.stdout + added.stderr
    with installation.serving() as process:
        yield process
    backends.discard(site)


@pytest.mark.parametrize("kind", ["error", "refuse"])
async def test_f18_s3_fails_at_the_third_part(
    client: AsyncOpenAI, moto_server: MotoServer, bucket: str, kind: str
) -> None:
    moto_server.order({"request": "partNumber=3", "kind": kind})
    with pytest.raises(InternalServerError) as failed:
        await client.files.create(file=("large.bin", LARGE), purpose="user_data")
    assert failed.value.status_code == 503
    assert failed.value.code == "unavailable"
    assert int(failed.value.response.headers["retry-after"]) > 0
    assert (moto_server.unfinished(bucket), moto_server.keys(bucket)) == ([], [])
    assert (await client.files.list()).data == []

    moto_server.order()
    sent = await client.files.create(file=("large.bin", LARGE), purpose="user_data")
    assert (await client.files.content(sent.id)).content == LARGE


async def test_f19_s3_stalls(client: AsyncOpenAI, moto_server: MotoServer) -> None:
    sent = await client.files.create(file=("large.bin", LARGE), purpose="user_data")
    moto_server.order({"request": "GET", "kind": "trickle", "bytes_per_second": 1024})
    began, held = time.monotonic(), _resident_bytes()
    with pytest.raises(InternalServerError) as failed:
        await client.files.content(sent.id)
    assert failed.value.status_code == 503

    moto_server.order({"request": "PUT", "kind": "delay", "seconds": 30})
    with pytest.raises(InternalServerError) as failed:
        await client.files.create(file=("large.bin", LARGE), purpose="user_data")
    assert failed.value.status_code == 503
    assert time.monotonic() - began < 60
    assert _resident_bytes() - held < 128 << 20

    moto_server.order()
    assert (await client.files.content(sent.id)).content == LARGE


async def test_f20_s3_returns_other_bytes_to_a_client(client: AsyncOpenAI, moto_server: MotoServer) -> None:
    sent = await client.files.create(file=("large.bin", LARGE), purpose="user_data")
    moto_server.order({"request": "GET", "kind": "corrupt"})
    with pytest.raises(APIError):
        await client.files.content(sent.id)
    moto_server.order()
    assert (await client.files.content(sent.id)).content == LARGE


@pytest.mark.parametrize("which", ["/files/", "training.tokens"])
def test_f20_s3_returns_other_bytes_to_a_worker(working: Process, moto_server: MotoServer, which: str) -> None:
    client = working.client()
    bucket = working.installation.settings["HONE_S3_BUCKET"]
    moto_server.order({"request": f"GET /{bucket}/.*{which}", "kind": "corrupt"})
    job = wait_for_end(client, create_job(client, epochs=1).id)
    moto_server.order()
    assert job.status == "failed"
    assert job.error
    assert (job.error.code, job.error.param) == ("checksum_mismatch", "training_file")
    assert not any(message.startswith("Step ") for message in messages(client, job.id))


def test_a_job_waits_for_storage_that_is_away_and_then_succeeds(working: Process, moto_server: MotoServer) -> None:
    client = working.client()
    moto_server.order({"request": "GET", "kind": "error"})
    job = create_job(client, epochs=1)
    wait_for(lambda: "files are checked when it is" in working.output.read_text(), seconds=60)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "validating_files"
    moto_server.order()
    job = wait_for_end(client, job.id)
    assert len(metrics(client, job)) == 13
    adapter = client.files.content(job.result_files[1])
    assert adapter.response.headers["etag"] == f'"{hashlib.sha256(adapter.content).hexdigest()}"'


def test_f21_the_disk_is_full(tmp_path: Path) -> None:
    """A limit on the size of the server's files stands for a full disk: its error is another, its handling the same."""
    installation = Installation(tmp_path / "data")
    migrations.upgrade(Settings(data_directory=installation.data).resolved_database_url)
    with installation.serving("--api-only") as server:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))
        client = server.client()
        for _ in range(3):
            with pytest.raises(APIStatusError) as full:
                client.files.create(file=("large.bin", LARGE), purpose="user_data")
            assert full.value.status_code == 503
            assert "The server's disk is full." in full.value.message
        assert _open_bytes(server.pid, installation.data / "uploads") == 0
        assert [path for path in (installation.data / "objects").rglob("*") if path.is_file()] == []
        small = client.files.create(file=("small.bin", b"x" * 1000), purpose="user_data")
        assert [file.id for file in client.files.list()] == [small.id]
        assert client.files.content(small.id).content == b"x" * 1000
    keeping.assert_kept(installation)


def test_f8_the_api_is_killed_in_an_upload(on_s3: Site, moto_server: MotoServer, bucket: str) -> None:
    installation = Installation.at(on_s3)
    with installation.serving("--api-only") as first:
        moto_server.order({"request": "partNumber=3", "kind": "delay", "seconds": 5})
        sending = threading.Thread(target=_send, args=(first.client(),), daemon=True)
        sending.start()
        wait_for(lambda: any("partNumber=3" in line for line in moto_server.requests()), seconds=60)
        first.kill()
        sending.join(20)
    moto_server.order()
    assert moto_server.unfinished(bucket) != []

    with installation.serving("--api-only") as second:
        assert second.client().files.list().data == []
        assert list((installation.data / "uploads").iterdir()) == []
        sent = second.client().files.create(file=("large.bin", LARGE), purpose="user_data")
        asyncio.run(_tidy(on_s3))
        assert moto_server.unfinished(bucket) == []
        (kept,) = moto_server.keys(bucket)
        assert kept.endswith(f"/files/{sent.id}")
    keeping.assert_kept(installation)


def test_a_missing_bucket_is_told_in_a_sentence(on_s3: Site, moto_server: MotoServer) -> None:
    installation = Installation.at(replace(on_s3, places={**on_s3.places, "s3_bucket": "bucket-none"}))
    for command in (["serve", "--port", "0"], ["doctor"]):
        refused = installation.hone(*command)
        assert refused.returncode == 1
        assert "there is no bucket bucket-none" in refused.stdout
        assert "Traceback" not in refused.stdout + refused.stderr
        assert moto_server.secret_access_key not in refused.stdout + refused.stderr


def _send(client: OpenAI) -> None:
    with suppress(APIError, httpx.HTTPError):
        client.files.create(file=("large.bin", LARGE), purpose="user_data")


async def _tidy(site: Site) -> None:
    async with open_resources(site.settings()) as resources:
        await tidying.once(resources, older_than=EVERYTHING)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _open_bytes(pid: int, directory: Path) -> int:
    """What the files without names in the directory take up that a process holds open."""
    total = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if str(descriptor.readlink()).startswith(str(directory)):
                total += descriptor.stat().st_size
    return total
