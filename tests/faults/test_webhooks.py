"""F25: receivers that refuse, fail, hang, redirect and reset; a worker that dies in a delivery; an absent database."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from app import sealing
from app.db import migrations
from app.db.models import JobStatus
from app.db.queries import database_now, scoped
from app.db.webhook_models import WebhookDelivery
from app.resources import open_resources
from app.services import job_states
from app.settings import Settings
from tests import factories
from tests.e2e.processes import PATIENCE, create_job, messages, wait_for, wait_for_end
from tests.faults import proxy
from tests.faults.jobs import Install, Recovered
from tests.faults.proxy import Proxy
from tests.history import keeping
from tests.servers import receiver
from tests.servers.postgres import Postgres
from tests.servers.receiver import Received, receiving, says
from worker import deliveries as sending

EVENTS: Any = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
SETTINGS = {
    "outgoing_allowed_networks": "127.0.0.0/8",
    "webhook_timeout_seconds": "1",
    "webhook_retry_seconds": "0.5",
    "webhook_give_up_seconds": str(30 * PATIENCE),
}


@pytest.fixture
def refusing() -> Iterator[str]:
    """The URL of a port that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def deliveries(http: httpx.Client, endpoint_id: str) -> list[dict[str, Any]]:
    answer = http.get(f"/v1/webhook_endpoints/{endpoint_id}/deliveries")
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def over(http: httpx.Client, endpoint_id: str) -> dict[str, Any] | None:
    """The one delivery to an endpoint, when nothing more will be tried."""
    found = deliveries(http, endpoint_id)
    assert len(found) <= 1
    return found[0] if found and found[0]["status"] != "pending" else None


def check_told(client: OpenAI, got: list[Received], secret: str, job_id: str) -> None:
    """All of it is one event, under one id, and signed anew each time."""
    assert len({request.headers["webhook-id"] for request in got}) == 1
    assert len({request.body for request in got}) == 1
    for request in got:
        event = client.webhooks.unwrap(request.body, request.headers, secret=secret)
        assert event.type == "fine_tuning.job.succeeded"
        assert event.data.id == job_id


def test_f25_receivers_that_fail(install: Install, refusing: str, recovered: Recovered) -> None:
    """The job goes its way; who recovers is told in the end, and of who does not it can be read why."""
    installation = install(**SETTINGS)
    with ExitStack() as open_until_the_end:
        process = open_until_the_end.enter_context(installation.serving())
        healthy = open_until_the_end.enter_context(receiving(says(200)))
        lured = open_until_the_end.enter_context(receiving(says(200)))
        redirecting = says(302, Location=lured.url)
        behaviours = (says(500), redirecting, receiver.silent, receiver.resetting, receiver.babbling)
        failing = [open_until_the_end.enter_context(receiving(behaviour)) for behaviour in behaviours]
        http = open_until_the_end.enter_context(process.http())
        client = process.client()

        def endpoint(url: str):
            return client.webhooks.create(name="test", url=url, event_types=EVENTS)

        dead, alive = endpoint(refusing), endpoint(healthy.url)
        made = [endpoint(server.url) for server in failing]

        job = wait_for_end(client, create_job(client, epochs=1).id)
        ended_at = time.monotonic()
        assert job.status == "succeeded", job.error
        assert messages(client, job.id)[-1] == "The job has successfully completed"

        wait_for(lambda: over(http, alive.id), seconds=5)
        assert time.monotonic() - ended_at < 5 * PATIENCE
        wait_for(lambda: all(len(server.received) >= 2 for server in failing), seconds=20)
        healed_at = time.monotonic()
        for server in failing:
            server.behaviour = says(200)
        for one, server in zip(made, failing, strict=True):
            delivery = wait_for(lambda one=one: over(http, one.id), seconds=25)
            assert (delivery["status"], delivery["last_status_code"]) == ("delivered", 200)
            assert delivery["attempts"] >= len(server.received) >= 3
            check_told(client, server.received, one.signing_secret, job.id)
        recovered(time.monotonic() - healed_at)

        given_up = wait_for(lambda: over(http, dead.id), seconds=60)
        assert (given_up["status"], given_up["last_error"]) == ("failed", "The connection was refused.")
        assert 4 <= given_up["attempts"] <= 12
        check_told(client, healthy.received, alive.signing_secret, job.id)
        assert len(healthy.received) == 1
        assert lured.received == []
        assert client.fine_tuning.jobs.retrieve(job.id) == job
    keeping.assert_kept(installation, must_have_ended=True)


def test_f25_a_worker_killed_between_sending_and_recording(install: Install, recovered: Recovered) -> None:
    """Another one sends it again when the lease is over, under the same id; no end is lost."""
    installation = install(**SETTINGS)
    with installation.serving("--api-only") as api, receiving(receiver.silent) as server, api.http() as http:
        client = api.client()
        made = client.webhooks.create(name="test", url=server.url, event_types=EVENTS)
        with installation.working("--cpu") as worker:
            job = create_job(client, epochs=1)
            client.fine_tuning.jobs.cancel(job.id)
            wait_for(lambda: server.received, seconds=10)
            worker.kill()
        killed_at = time.monotonic()
        server.behaviour = says(200)
        unheard = client.fine_tuning.jobs.cancel(create_job(client, epochs=1).id)  # while there is no worker
        with installation.working("--cpu"):
            wait_for(
                lambda: [one["status"] for one in deliveries(http, made.id)] == ["delivered"] * 2,
                seconds=60,
            )
        recovered(time.monotonic() - killed_at)
        told = [(got.headers["webhook-id"], got.body) for got in server.received]
        of_first = [one for one in told if job.id.encode() in one[1]]
        assert len(of_first) >= 2
        assert len(set(of_first)) == 1
        assert [unheard.id.encode() in body for _, body in set(told) - set(of_first)] == [True]
    keeping.assert_kept(installation, must_have_ended=True)


@pytest.fixture
def way(postgres_server: Postgres) -> Iterator[Proxy]:
    postgres_server.create("webhooks")
    migrations.upgrade(postgres_server.url("webhooks"))
    with proxy.running(postgres_server.port) as between:
        yield between
        between.heal()
    postgres_server.drop("webhooks")


async def test_f25_the_database_is_away_when_the_receiver_answers(
    way: Proxy, postgres_server: Postgres, tmp_path: Path, recovered: Recovered
) -> None:
    """What was answered is recorded when the database is back, and not sent again."""
    url = postgres_server.url("webhooks", port=way.port)
    places = {"data_directory": tmp_path, "database_url": url, "database_timeout_seconds": 1.0}
    settings = Settings.model_validate(places | SETTINGS | {"secret_keys": sealing.new_key()})

    def fail_then_answer(handler: receiver.Handler) -> None:
        way.refuse()
        handler.reply(200, {})

    with receiving(fail_then_answer) as server:
        async with open_resources(settings) as resources:
            principal, _ = await factories.project(resources)
            await factories.webhook_endpoint(resources, principal, server.url)
            job = await factories.job(resources, principal, status=JobStatus.QUEUED)
            async with resources.write() as session:
                session.add(job)
                now = await database_now(session)
                job_states.move(session, job, JobStatus.CANCELLED, message="The job has been cancelled", now=now)
            task = asyncio.create_task(sending.run(resources))
            await asyncio.to_thread(wait_for, lambda: server.received, seconds=10)
            await asyncio.sleep(4)
            way.heal()
            healed_at = time.monotonic()
            delivery = None
            while delivery is None or delivery.delivered_at is None:
                assert time.monotonic() - healed_at < 15 * PATIENCE
                await asyncio.sleep(0.1)
                async with resources.read() as session:
                    delivery = await session.scalar(scoped(WebhookDelivery, principal))
            recovered(time.monotonic() - healed_at)
            task.cancel()
            await asyncio.wait([task])
    assert (delivery.attempts, len(server.received)) == (1, 1)
