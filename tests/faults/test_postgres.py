"""PostgreSQL restarts, resets, falls silent or is overloaded: requests are answered in time, and nothing is lost."""

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
from openai import OpenAI

from app.db.models import Event, JobStatus
from app.db.queries import of_job
from app.errors import Unavailable
from app.resources import Resources, open_resources
from app.services import events, leases
from app.services.leases import Lease, LeaseLost
from tests import factories
from tests.e2e.processes import Installation
from tests.faults import stand
from tests.faults.jobs import Recovered
from tests.faults.stand import Stand
from tests.servers.postgres import Postgres
from worker import sweeps


def polling(made: Stand, job_id: str) -> tuple[Callable[[], object], ...]:
    """What clients do all the time."""
    return (
        lambda: made.request("GET", f"/v1/fine_tuning/jobs/{job_id}"),
        lambda: made.request("GET", "/healthz"),
        made.create_job,
    )


def test_f13_a_restart_under_polling_is_told_as_503(
    postgres_server: Postgres, tmp_path: Path, instant: float, recovered: Recovered
) -> None:
    with stand.on_postgres(postgres_server, tmp_path / "data") as made:
        job = made.create_job().body
        with made.busy(*polling(made, job["id"])):
            time.sleep(0.2 + instant)
            postgres_server.stop()
            time.sleep(0.5 + instant)
            postgres_server.start()
            recovered(made.wait_until_it_answers())
            time.sleep(0.2)
        assert made.check_answers()[503] > 0
        made.check_jobs()


@pytest.mark.parametrize("what", ["the request", "the reply"])
def test_f14_a_commit_that_is_lost_is_not_acknowledged(postgres_server: Postgres, tmp_path: Path, what: str) -> None:
    with stand.on_postgres(postgres_server, tmp_path / "data") as made:
        assert made.proxy is not None
        assert made.create_job().status == 200
        (made.proxy.reset_at if what == "the request" else made.proxy.lose_reply)(b"COMMIT")
        assert made.create_job().status == 503
        assert made.proxy.fired.wait(1)
        assert len(made.jobs()) == (1 if what == "the request" else 2)
        assert made.create_job().status == 200
        made.check_answers()
        made.check_jobs()


@pytest.mark.parametrize("what", ["the request", "the reply"])
def test_f14_a_lost_commit_is_made_good_by_the_same_key(postgres_server: Postgres, tmp_path: Path, what: str) -> None:
    """The client cannot know whether its job is there, and need not."""
    with stand.on_postgres(postgres_server, tmp_path / "data") as made:
        assert made.proxy is not None
        (made.proxy.reset_at if what == "the request" else made.proxy.lose_reply)(b"COMMIT")
        assert made.create_job(key="nightly").status == 503
        assert made.proxy.fired.wait(1)
        answered = [made.create_job(key="nightly") for _ in range(2)]
        assert [answer.status for answer in answered] == [200, 200]
        assert {answer.body["id"] for answer in answered} == {job["id"] for job in made.jobs()}
        made.check_answers()
        made.check_jobs()


@pytest.mark.parametrize("what", ["the request", "the reply"])
def test_f14_an_unmodified_client_makes_one_job(postgres_server: Postgres, tmp_path: Path, what: str) -> None:
    """It sends no key, but tries again by itself, and says so."""
    with stand.on_postgres(postgres_server, tmp_path / "data") as made:
        assert made.proxy is not None
        key = made.client.headers["authorization"].removeprefix("Bearer ")
        with OpenAI(api_key=key, base_url=f"{made.client.base_url}/v1") as client:
            (made.proxy.reset_at if what == "the request" else made.proxy.lose_reply)(b"COMMIT")
            job = client.fine_tuning.jobs.create(model=factories.BASE_MODEL, training_file=made.training_file)
        assert made.proxy.fired.is_set()
        assert [one["id"] for one in made.jobs()] == [job.id]


def test_f14_resets_while_jobs_are_created(postgres_server: Postgres, tmp_path: Path, instant: float) -> None:
    pause = random.Random(instant)
    with stand.on_postgres(postgres_server, tmp_path / "data") as made:
        assert made.proxy is not None
        with made.busy(made.create_job, clients=3):
            for _ in range(10):
                time.sleep(0.1 * pause.random())
                made.proxy.reset()
        made.check_answers()
        made.check_jobs()


def test_f15_a_black_hole_is_told_within_the_promised_time(
    postgres_server: Postgres, tmp_path: Path, instant: float, recovered: Recovered
) -> None:
    """With the default settings, whose sum is what the promise is about."""
    with stand.on_postgres(postgres_server, tmp_path / "data") as made:
        assert made.proxy is not None
        job = made.create_job().body
        with made.busy(*polling(made, job["id"])):
            time.sleep(0.2 + 0.2 * instant)
            made.proxy.black_hole()
            time.sleep(6)
            made.proxy.heal()
            recovered(made.wait_until_it_answers())
        assert made.check_answers()[503] > 0
        made.check_jobs()


def test_f15_who_follows_events_waits_for_the_database(postgres_server: Postgres, tmp_path: Path) -> None:
    settings = {"database_timeout_seconds": 1}
    with stand.on_postgres(postgres_server, tmp_path / "data", **settings) as made, ThreadPoolExecutor(1) as reader:
        assert made.proxy is not None
        path = f"/v1/fine_tuning/jobs/{made.create_job().body['id']}"
        following = reader.submit(made.client.get, f"{path}/events?stream=true")
        time.sleep(0.5)
        made.proxy.black_hole()
        time.sleep(3)
        made.proxy.heal()
        made.wait_until_it_answers()
        made.proxy.reset()
        time.sleep(1.5)
        assert not following.done()
        assert made.request("POST", f"{path}/cancel").status == 200
        *told, done = [line[6:] for line in following.result(20).text.splitlines() if line.startswith("data: ")]
        assert done == "[DONE]"
        listed = made.request("GET", f"{path}/events").body["data"]
        assert [json.loads(event) for event in told] == listed[::-1]


def test_f15_a_worker_in_a_black_hole_is_fenced(postgres_server: Postgres, tmp_path: Path, instant: float) -> None:
    """It comes back to a job that another has taken: what it still writes changes nothing."""
    settings = {"database_timeout_seconds": 1, "lease_seconds": 1}
    with stand.on_postgres(postgres_server, tmp_path / "data", **settings) as made:
        asyncio.run(_lose_a_job_to_another(made, instant))


async def _lose_a_job_to_another(made: Stand, instant: float) -> None:
    assert made.proxy is not None
    async with open_resources(made.settings) as cut_off, open_resources(made.direct) as well:
        principal, _ = await factories.project(well)
        job = await factories.job(well, principal)
        stale = await _claim(cut_off, "worker-a/0")
        writing = asyncio.create_task(_write_until_lost(cut_off, stale))
        await asyncio.sleep(0.1 + instant)
        made.proxy.black_hole()
        await asyncio.sleep(2)
        await sweeps.expire_silent(well)
        fresh = await _claim(well, "worker-b/0")
        assert fresh.fence == stale.fence + 1
        made.proxy.heal()
        await asyncio.wait_for(writing, 10)
        async with well.read() as session:
            told = list(await session.scalars(of_job(Event, job.id).order_by(Event.sequence)))
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))
    messages = [event.message for event in told]
    assert "written" in messages
    assert "written" not in messages[messages.index("Fine-tuning job resumed") :]


async def _claim(resources: Resources, owner: str) -> Lease:
    async with resources.write() as session:
        claimed = await leases.claim(session, owner=owner, status=JobStatus.QUEUED, ttl_seconds=1)
    assert claimed is not None
    return claimed[0]


async def _write_until_lost(resources: Resources, lease: Lease) -> None:
    while True:
        try:
            async with resources.write() as session:
                job, now = await leases.hold(session, lease)
                events.add(session, job, "written", now=now)
        except Unavailable:
            continue
        except LeaseLost:
            return


def test_f16_taken_connections_are_told_and_the_health_is_good(postgres_server: Postgres, tmp_path: Path) -> None:
    settings = {"database_connections": 3, "database_timeout_seconds": 1.5}
    with stand.on_postgres(postgres_server, tmp_path / "data", **settings) as made:
        job = made.create_job().body
        with ThreadPoolExecutor(12) as clients, _locked(made.direct.resolved_database_url, "jobs"):
            path = f"/v1/fine_tuning/jobs/{job['id']}"
            waiting = [clients.submit(made.request, "GET", path) for _ in range(12)]
            time.sleep(0.5)
            made.request("GET", "/healthz")
            assert {one.result(30).status for one in waiting} == {503}
        assert made.request("GET", path).status == 200
        made.check_answers()


@contextmanager
def _locked(url: str, table: str) -> Iterator[None]:
    """Another client has locked the table, so that every query on it waits."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(url))
        runner.run(connection.execute(f"begin; lock table {table}"))
        yield
        runner.run(connection.close())


def test_who_cannot_reach_the_database_says_why_and_shows_no_password(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"postgresql://hone:a-secret-password@127.0.0.1:{port}/hone"
    installation = Installation(tmp_path / "data", {"HONE_DATABASE_URL": url})
    for arguments in (["migrate"], ["worker"], ["doctor"]):
        refused = installation.hone(*arguments)
        assert refused.returncode == 1
        assert "The database does not answer: cannot connect" in refused.stdout
        assert "Traceback" not in refused.stdout + refused.stderr
        assert "a-secret-password" not in refused.stdout + refused.stderr
