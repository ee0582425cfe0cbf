"""What really happened is what is written down, by either kind of client; and what is broken on disk is seen."""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, NotFoundError
from sqlalchemy import delete

from app.db.models import File
from app.resources import open_resources
from app.settings import Settings
from tests import factories
from tests.backends import Site
from tests.conftest import Served, serve
from tests.history import keeping, promises, snapshot
from tests.history.recorder import Content, History

DATA = factories.jsonl()


@pytest.fixture
def server(site: Site) -> Iterator[Served]:
    yield from serve(site.settings())


@pytest.fixture
def key(server: Served) -> str:
    async def make() -> str:
        async with open_resources(server.settings) as resources:
            await factories.base_model(resources)
            return (await factories.project(resources))[1]

    return asyncio.run(make())


def violations(settings: Settings, history: History) -> list[str]:
    end = asyncio.run(snapshot.take(settings, []))
    return promises.violations(promises.Record(history.exchanges, end, history.secrets))


def test_a_conversation_is_written_down(server: Served, key: str) -> None:
    history = History(secrets={key})
    client = history.openai(api_key=key, base_url=f"{server.url}/v1")
    sent = client.files.create(file=("train.jsonl", DATA), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=factories.BASE_MODEL, training_file=sent.id)
    assert client.files.content(sent.id).content == DATA
    with pytest.raises(NotFoundError):
        client.files.retrieve("file-none")
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    shown = [event.id for event in client.fine_tuning.jobs.list_events(job.id)]

    upload, created, download, missing, cancelled, events = history.exchanges
    content = Content(len(DATA), hashlib.sha256(DATA).hexdigest())
    assert upload.uploaded == download.downloaded == content
    assert [(seen.kind, seen.id, seen.status) for seen in created.seen] == [("fine_tuning.job", job.id, job.status)]
    assert (missing.status, missing.is_acknowledged) == (404, False)
    assert [seen.status for seen in cancelled.seen] == ["cancelled"]
    assert [seen.id for seen in events.seen] == shown
    assert all(made.began < made.ended and made.caller for made in history.exchanges)
    asyncio.run(keeping.assert_kept_by_server(server.settings, history))


def test_other_bytes_and_lost_rows_are_seen(server: Served, key: str) -> None:
    history = History()
    client = history.openai(api_key=key, base_url=f"{server.url}/v1")
    sent = client.files.create(file=("train.jsonl", DATA), purpose="fine-tune")
    assert violations(server.settings, history) == []

    async def overwrite() -> None:
        async with open_resources(server.settings) as resources:
            (at,) = [key for key in await factories.objects(resources) if key.endswith(sent.id)]
            await factories.stored(resources, at, b"other bytes")

    asyncio.run(overwrite())
    assert [found.partition(" (")[0] for found in violations(server.settings, history)] == ["promise 8"]

    async def lose() -> None:
        async with open_resources(server.settings) as resources, resources.write() as session:
            await session.execute(delete(File))

    asyncio.run(lose())
    assert [found.partition(" (")[0] for found in violations(server.settings, history)] == ["promise 1"]


async def test_an_asynchronous_client_is_written_down_too(server: Served) -> None:
    async with open_resources(server.settings) as resources:
        _, key = await factories.project(resources)
    history = History(secrets={key})
    recorded = DefaultAsyncHttpxClient(event_hooks=history.async_hooks)
    async with AsyncOpenAI(api_key=key, base_url=f"{server.url}/v1", http_client=recorded) as client:
        sent = await client.files.create(file=("train.jsonl", DATA), purpose="fine-tune")
        await client.files.content(sent.id)
    upload, download = history.exchanges
    assert upload.uploaded == download.downloaded == Content.of(DATA)
    await keeping.assert_kept_by_server(server.settings, history)


def test_a_secret_in_a_log_or_an_answer_is_seen(server: Served, key: str, tmp_path: Path) -> None:
    history = History(secrets={"processed"})  # the word for a file that is ready, as if it were one
    client = history.openai(api_key=key, base_url=f"{server.url}/v1")
    client.files.create(file=("train.jsonl", DATA), purpose="fine-tune")
    (tmp_path / "worker.1.log").write_text("it was processed")
    end = asyncio.run(snapshot.take(server.settings, [tmp_path]))
    found = promises.violations(promises.Record(history.exchanges, end, history.secrets))
    assert {one.partition(" (")[0] for one in found} == {"promise 10"}
    for where in ("table files", "worker.1.log", "POST /v1/files"):
        assert any(where in one for one in found), where
