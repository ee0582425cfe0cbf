"""What befalls Redis, F7 and F9 to F12: a real API and real workers go on, and each job runs once.

`instant`, from 0 to 1, says when within the test's window the fault strikes.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from tests.e2e.processes import (
    Installation,
    Process,
    create_job,
    is_alive,
    messages,
    wait_for,
    wait_for_end,
    wait_for_step,
)
from tests.faults import proxy
from tests.faults.jobs import Recovered
from tests.servers import redis, required
from tests.servers.redis import RedisServer

PASSWORD = "a-secret-of-redis"
ANSWER_SECONDS = 3.0
STEPS = 12  # of one epoch

Install = Callable[..., Installation]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    required.skip_without("redis-server")
    with redis.running(tmp_path / "redis", password=PASSWORD, append_only=True) as started:
        yield started


@contextmanager
def service(installation: Installation) -> Iterator[tuple[Process, Process]]:
    """An API server and a worker, each a process of its own; what they logged is looked through at the end."""
    with installation.serving("--api-only") as api, installation.working() as worker:
        yield api, worker
        assert is_alive(api.pid)
        assert is_alive(worker.pid)
    check_log(api)
    check_log(worker)


def check_log(process: Process) -> None:
    """A state is told when it changes, not each second; nothing was unforeseen, and no secret is in it."""
    log = process.output.read_text()
    assert "Traceback" not in log
    assert PASSWORD not in log
    assert log.count("Redis does not work") <= 6


def create_timed(client: OpenAI) -> str:
    """Posts a job, which is acknowledged in time whatever happens to Redis; returns its id."""
    began = time.monotonic()
    job = create_job(client, epochs=1)
    assert time.monotonic() - began < 3 * ANSWER_SECONDS  # with its two files
    return job.id


def check_history(client: OpenAI, job_ids: list[str]) -> None:
    """Every acknowledged job is there and has succeeded, in one run that nothing disturbed, told once."""
    for job_id in job_ids:
        job = wait_for_end(client, job_id)
        assert job.status == "succeeded", job.error
        told = messages(client, job_id)
        assert told.count("Fine-tuning job started") == 1, told
        assert "Fine-tuning job resumed" not in told
        assert told[-1] == "The job has successfully completed"
        assert told.count(told[-1]) == 1
        assert len([message for message in told if message.startswith("Step ")]) == STEPS


def wait_until_ready(api: Process) -> None:
    """Until the API reaches Redis again."""
    wait_for(lambda: httpx.get(f"{api.url}/readyz", timeout=5).json()["queue"] == "ok", seconds=10)


def test_f7_api_killed_between_commit_and_wake(install: Install, server: RedisServer, instant: float) -> None:
    installation = install(redis_url=server.url)
    with installation.serving("--api-only") as first:
        with server.client() as client:
            client.config_resetstat()
        server.freeze()
        job_id = create_timed(first.client())
        time.sleep(instant)  # the wake hangs for twice as long
        first.kill()
        server.thaw()
    with server.client() as client:
        assert "cmdstat_zadd" not in str(client.info("commandstats")), "the wake was sent"
    with service(installation) as (api, _):
        check_history(api.client(), [job_id])


def test_f9_redis_killed_for_three_seconds(
    install: Install, server: RedisServer, instant: float, recovered: Recovered
) -> None:
    with service(install(redis_url=server.url)) as (api, _):
        client = api.client()
        jobs = [create_timed(client)]
        time.sleep(3 * instant)
        server.kill()
        until = time.monotonic() + 3
        jobs += [create_timed(client) for _ in range(2)]
        assert httpx.get(f"{api.url}/readyz", timeout=5).json() == {"status": "ok", "queue": "away"}
        time.sleep(max(0.0, until - time.monotonic()))
        server.start()
        started_at = time.monotonic()
        jobs.append(create_timed(client))
        wait_until_ready(api)
        recovered(time.monotonic() - started_at)
        check_history(client, jobs)


def test_f10_redis_flushed(install: Install, server: RedisServer, instant: float) -> None:
    with service(install(redis_url=server.url)) as (api, _):
        client = api.client()
        jobs = [create_timed(client) for _ in range(3)]
        time.sleep(3 * instant)
        with server.client() as flushing:
            flushing.flushall()
        jobs.append(create_timed(client))
        check_history(client, jobs)


def test_f11_redis_black_holed(install: Install, server: RedisServer, instant: float) -> None:
    """For longer than a lease: neither heartbeats nor training wait for Redis."""
    with proxy.running(server.port) as between:
        installation = install(redis_url=server.url_through(between.port), lease_seconds="5")
        with service(installation) as (api, _), ThreadPoolExecutor(1) as beside:
            client = api.client()
            jobs = [create_timed(client)]
            time.sleep(3 * instant)
            between.black_hole()
            statuses = beside.submit(_slowest_status, api, jobs[0], 10.0)
            jobs += [create_timed(client) for _ in range(2)]
            assert httpx.get(f"{api.url}/readyz", timeout=5).json()["queue"] == "away"
            assert statuses.result(30) < ANSWER_SECONDS
            check_history(client, jobs)
            between.heal()
            jobs.append(create_timed(client))
            check_history(client, jobs)
            wait_until_ready(api)


def test_f11_a_worker_starts_and_stops_without_redis(install: Install, server: RedisServer) -> None:
    with proxy.running(server.port) as between:
        installation = install(redis_url=server.url_through(between.port))
        between.black_hole()
        with installation.serving("--api-only") as api, installation.working() as worker:
            client = api.client()
            job = create_job(client, epochs=50)
            wait_for_step(client, job.id, 2)
            assert worker.interrupt() == 0
            assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
            assert api.interrupt() == 0
        between.heal()
    check_log(api)
    check_log(worker)


def _slowest_status(api: Process, job_id: str, seconds: float) -> float:
    """Asks for a job's status again and again; returns the longest time that an answer took."""
    slowest, until = 0.0, time.monotonic() + seconds
    with api.http() as http:
        while time.monotonic() < until:
            began = time.monotonic()
            assert http.get(f"/v1/fine_tuning/jobs/{job_id}").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.1)
    return slowest


@pytest.mark.parametrize("who", ["api", "worker"])
def test_f12_reply_to_exec_lost(install: Install, server: RedisServer, instant: float, who: str) -> None:
    """Whether a wake was sent, or taken, is then unknown to who did it. It may come twice; the job runs once."""
    installation = install(redis_url=server.url)
    with proxy.running(server.port) as between:
        led_through = {"HONE_REDIS_URL": server.url_through(between.port)}
        through = replace(installation, settings=installation.settings | led_through)
        sides = {"api": installation, "worker": installation} | {who: through}
        with sides["api"].serving("--api-only") as api, sides["worker"].working() as worker:
            client = api.client()
            jobs = [create_timed(client)]
            time.sleep(3 * instant)
            between.lose_reply(b"EXEC")
            jobs += [create_timed(client) for _ in range(3)]
            assert between.fired.wait(20)
            check_history(client, jobs)
    check_log(api)
    check_log(worker)
