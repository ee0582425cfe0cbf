"""Telling receivers what has become of jobs: once, soon, again if need be, and each by itself."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.models import Job, JobStatus
from app.db.queries import database_now, scoped
from app.db.webhook_models import WebhookDelivery, WebhookEndpoint, WebhookEvent
from app.resources import Resources
from app.schemas.webhooks import WebhookEndpointCreate
from app.services import job_states, webhook_deliveries, webhook_sending, webhooks
from app.services.retries import Attempt
from app.services.webhook_sending import Outcome
from tests import factories
from tests.servers import receiver
from tests.servers.receiver import Received, receiving, says
from worker import deliveries

CLIENT = OpenAI(api_key="unused")
LOOPBACK = ip_network("127.0.0.0/8")


def with_settings(resources: Resources, **settings: Any) -> Resources:
    """Short waits, and receivers on this machine."""
    usual = {"outgoing_allowed_networks": (LOOPBACK,), "webhook_retry_seconds": 0.05, "webhook_timeout_seconds": 1.0}
    return replace(resources, settings=resources.settings.model_copy(update={**usual, **settings}))


@asynccontextmanager
async def delivering(resources: Resources, **settings: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(deliveries.run(with_settings(resources, **settings)))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def secret_of(resources: Resources, endpoint: WebhookEndpoint) -> str:
    return resources.sealer.unseal(endpoint.secret)


async def ended_job(resources: Resources, principal: Principal, status: JobStatus = JobStatus.SUCCEEDED) -> str:
    """A job that ends just now."""
    job_id = (await factories.job(resources, principal, status=JobStatus.RUNNING)).id
    async with resources.write() as session:
        await end(session, principal, job_id, status)
    return job_id


async def end(session: AsyncSession, principal: Principal, job_id: str, status: JobStatus) -> None:
    job = (await session.scalars(scoped(Job, principal).where(Job.id == job_id))).one()
    job_states.move(session, job, status, message="ended", now=await database_now(session))
    await session.flush()


async def log(resources: Resources, endpoint: WebhookEndpoint) -> Sequence[WebhookDelivery]:
    principal = Principal("", endpoint.project_id, "")
    query = scoped(WebhookDelivery, principal).where(WebhookDelivery.endpoint_id == endpoint.id)
    async with resources.read() as session:
        return (await session.scalars(query.order_by(WebhookDelivery.created_at))).all()


async def until(look: Callable[[], Any], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if await found if asyncio.iscoroutine(found) else found:
            return
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


async def until_over(resources: Resources, endpoint: WebhookEndpoint, count: int = 1) -> Sequence[WebhookDelivery]:
    found: Sequence[WebhookDelivery] = []

    async def look() -> bool:
        nonlocal found
        found = await log(resources, endpoint)
        return len(found) == count and all(delivery.next_attempt_at is None for delivery in found)

    await until(look)
    return found


def unwrapped(got: Received, secret: str) -> dict[str, Any]:
    return CLIENT.webhooks.unwrap(got.body, got.headers, secret=secret).to_dict()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (JobStatus.SUCCEEDED, "fine_tuning.job.succeeded"),
        (JobStatus.FAILED, "fine_tuning.job.failed"),
        (JobStatus.CANCELLED, "fine_tuning.job.cancelled"),
    ],
)
async def test_an_end_is_told_as_openai_tells_it(resources: Resources, status: JobStatus, kind: str) -> None:
    principal, _ = await factories.project(resources)
    with receiving(says(204)) as server:
        endpoint = await factories.webhook_endpoint(resources, principal, f"{server.url}/hook")
        async with delivering(resources):
            job_id = await ended_job(resources, principal, status)
            began = time.monotonic()
            (delivery,) = await until_over(resources, endpoint)
            assert time.monotonic() - began < 5
    (got,) = server.received
    event = unwrapped(got, secret_of(resources, endpoint))
    assert set(event) == {"id", "object", "type", "created_at", "data"}
    assert (event["object"], event["type"], event["data"]) == ("event", kind, {"id": job_id})
    assert event["id"] == delivery.event_id
    assert abs(event["created_at"] - time.time()) < 60
    assert got.path == "/hook"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"].startswith("Hone/")
    assert got.headers["webhook-id"] == delivery.id
    assert got.body.decode() == delivery.payload
    assert (delivery.attempts, delivery.last_status_code, delivery.last_error) == (1, 204, None)
    assert delivery.delivered_at is not None
    with pytest.raises(InvalidWebhookSignatureError):
        CLIENT.webhooks.unwrap(got.body + b" ", got.headers, secret=secret_of(resources, endpoint))


async def test_who_is_told(resources: Resources) -> None:
    """Endpoints of the project that have asked for it, and were there by then."""
    principal, _ = await factories.project(resources)
    stranger, _ = await factories.project(resources)
    with receiving(says(200)) as server:
        here, there = [await factories.webhook_endpoint(resources, principal, server.url) for _ in range(2)]
        others = [
            await factories.webhook_endpoint(resources, principal, server.url, event_types=["batch.completed"]),
            await factories.webhook_endpoint(resources, stranger, server.url),
        ]
        job_id = await ended_job(resources, principal)
        await ended_job(resources, principal, JobStatus.PAUSED)
        later = (await factories.webhook_endpoint(resources, principal, server.url)).created_at + timedelta(seconds=60)
        others.append(await factories.webhook_endpoint(resources, principal, server.url, created_at=later))
        async with delivering(resources):
            told = [*await until_over(resources, here), *await until_over(resources, there)]
        assert [await log(resources, other) for other in others] == [[], [], []]
    assert {json.loads(delivery.payload)["data"]["id"] for delivery in told} == {job_id}
    assert len({delivery.id for delivery in told}) == 2
    assert len({delivery.event_id for delivery in told}) == 1


async def test_an_endpoint_made_where_the_clock_is_ahead_is_told(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are dated by the database's clock, and so are endpoints."""
    principal, _ = await factories.project(resources)
    monkeypatch.setattr(webhooks, "utc_now", lambda: datetime.now(UTC) + timedelta(hours=1))
    with receiving(says(200)) as server:
        body = WebhookEndpointCreate(name="test", url=server.url, event_types=["fine_tuning.job.succeeded"])
        async with resources.write() as session:
            created = await webhooks.create(
                session,
                principal,
                made=Attempt(""),
                body=body,
                settings=with_settings(resources).settings,
                sealer=resources.sealer,
            )
        job_id = await ended_job(resources, principal)
        async with delivering(resources):
            (told,) = await until_over(resources, created.endpoint)
    assert json.loads(told.payload)["data"]["id"] == job_id


async def test_a_pause_is_told_to_those_who_ask_for_it_by_name(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    with receiving(says(200)) as server:
        paused = ["fine_tuning.job.paused"]
        endpoint = await factories.webhook_endpoint(resources, principal, server.url, event_types=paused)
        async with delivering(resources):
            await ended_job(resources, principal, JobStatus.PAUSED)
            await until_over(resources, endpoint)
    assert CLIENT.webhooks.unwrap(
        server.received[0].body, server.received[0].headers, secret=secret_of(resources, endpoint)
    ).type == ("fine_tuning.job.paused")


async def test_an_end_that_does_not_come_to_pass_is_not_told(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    job_id = (await factories.job(resources, principal, status=JobStatus.RUNNING)).id

    async def end_and_fail() -> None:
        async with resources.write() as session:
            await end(session, principal, job_id, JobStatus.FAILED)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await end_and_fail()
    async with resources.read() as session:
        assert (await session.scalars(scoped(WebhookEvent, principal))).all() == []


async def test_without_endpoints_nothing_is_kept(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await ended_job(resources, principal)
    async with resources.write() as session:
        await webhook_deliveries.distribute(session)
    async with resources.read() as session:
        assert not await webhook_deliveries.has_work(session, busy_endpoints=())
        assert (await session.scalars(scoped(WebhookEvent, principal))).all() == []


async def test_both_secrets_sign_while_the_old_one_is_kept(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    with receiving(says(200)) as server:
        endpoint = await factories.webhook_endpoint(resources, principal, server.url)
        secrets = [secret_of(resources, endpoint)]
        for keep_old in (True, True, False):
            async with resources.write() as session:
                _, secret = await webhooks.rotate_secret(
                    session, principal, endpoint_id=endpoint.id, keep_old=keep_old, sealer=resources.sealer
                )
                secrets.append(secret)
            async with delivering(resources):
                await ended_job(resources, principal)
                await until_over(resources, endpoint, len(server.received) + 1)
        assert len(set(secrets)) == 4
    good = [[number for number, secret in enumerate(secrets) if _verifies(got, secret)] for got in server.received]
    assert good == [[0, 1], [0, 1, 2], [3]]


def _verifies(got: Received, secret: str) -> bool:
    try:
        unwrapped(got, secret)
    except InvalidWebhookSignatureError:
        return False
    return True


async def test_an_old_secret_ends(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    now = int(time.time())
    kept, gone = (resources.sealer.seal(secret) for secret in ("whsec_b2xk", "whsec_b2xkZXI="))
    old = [{"secret": kept, "expires_at": now + 60}, {"secret": gone, "expires_at": now - 1}]
    endpoint = await factories.webhook_endpoint(resources, principal, "https://receiver.example/", old_secrets=old)
    async with resources.read() as session:
        active = webhook_deliveries.active_secrets(endpoint, await database_now(session), resources.sealer)
    assert active == (secret_of(resources, endpoint), "whsec_b2xk")


@pytest.mark.parametrize(
    ("behaviour", "status", "error"),
    [
        (says(500), 500, None),
        (says(302, Location="http://127.0.0.1:1/"), 302, None),
        (says(404), 404, None),
        (receiver.resetting, None, "The connection broke off, or the answer was not HTTP."),
        (receiver.silent, None, "No answer within 0.3 seconds."),
    ],
    ids=["500", "302", "404", "reset", "silent"],
)
async def test_what_is_no_success_is_tried_again_with_the_same_id(
    resources: Resources, behaviour: receiver.Behaviour, status: int | None, error: str | None
) -> None:
    principal, _ = await factories.project(resources)
    with receiving(behaviour) as server:
        endpoint = await factories.webhook_endpoint(resources, principal, server.url)
        await ended_job(resources, principal)
        async with delivering(resources, webhook_timeout_seconds=0.3):
            await until(lambda: len(server.received) >= 2)
            (failing,) = await log(resources, endpoint)
            server.behaviour = says(200)
            (delivery,) = await until_over(resources, endpoint)
    assert (failing.last_status_code, failing.last_error) == (status, error)
    assert failing.next_attempt_at is not None
    assert failing.delivered_at is None
    assert delivery.attempts == len(server.received) >= 3
    assert (delivery.last_status_code, delivery.last_error) == (200, None)
    assert {got.headers["webhook-id"] for got in server.received} == {delivery.id}
    assert len({got.body for got in server.received}) == 1
    for got in server.received:
        unwrapped(got, secret_of(resources, endpoint))


async def test_the_job_does_not_care(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    endpoint = await factories.webhook_endpoint(resources, principal, "https://receiver.invalid/")
    job_id = await ended_job(resources, principal)
    async with delivering(resources, webhook_give_up_seconds=0):
        (delivery,) = await until_over(resources, endpoint)
    assert (delivery.delivered_at, delivery.last_error) == (None, "The URL's host has no address.")
    async with resources.read() as session:
        job = (await session.scalars(scoped(Job, principal).where(Job.id == job_id))).one()
    assert (job.status, job.event_sequence) == (JobStatus.SUCCEEDED, 1)


async def test_gives_up_in_the_end_and_says_so(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    with receiving(says(503)) as server:
        endpoint = await factories.webhook_endpoint(resources, principal, server.url)
        await ended_job(resources, principal)
        async with delivering(resources, webhook_give_up_seconds=1.5):
            (delivery,) = await until_over(resources, endpoint)
        tried = len(server.received)
    assert tried == delivery.attempts >= 3
    assert (delivery.delivered_at, delivery.last_status_code) == (None, 503)
    assert delivery.last_attempt_at is not None
    assert delivery.last_attempt_at - delivery.created_at >= timedelta(seconds=1.5)


async def test_a_receiver_that_is_gone_is_not_asked_again(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    with receiving(says(410)) as server:
        endpoint = await factories.webhook_endpoint(resources, principal, server.url)
        await ended_job(resources, principal)
        async with delivering(resources):
            (delivery,) = await until_over(resources, endpoint)
    assert (delivery.attempts, delivery.delivered_at, delivery.last_status_code) == (1, None, 410)


async def test_addresses_are_checked_at_each_attempt(resources: Resources) -> None:
    """An endpoint may be older than the setting that would refuse it."""
    principal, _ = await factories.project(resources)
    with receiving(says(200)) as server:
        endpoint = await factories.webhook_endpoint(resources, principal, server.url)
        await ended_job(resources, principal)
        async with delivering(resources, outgoing_allowed_networks=(), webhook_give_up_seconds=0):
            (delivery,) = await until_over(resources, endpoint)
    assert server.received == []
    assert delivery.last_error is not None
    assert "https" in delivery.last_error


def test_waits_double_up_to_six_hours_within_three_days() -> None:
    waits = [webhook_deliveries.delay(attempt, retry_seconds=5).total_seconds() for attempt in range(1, 40)]
    for attempt, wait in enumerate(waits, start=1):
        middle = min(5 * 2 ** (attempt - 1), 21600)
        assert 0.8 * middle <= wait <= 1.2 * middle
    assert len(set(waits)) == len(waits)
    elapsed, attempts = 0.0, 1
    while elapsed < 72 * 3600:
        elapsed += waits[attempts - 1]
        attempts += 1
    assert 18 <= attempts <= 30


async def test_the_last_attempt_is_at_the_end_of_the_time(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    endpoint = await factories.webhook_endpoint(resources, principal, "https://receiver.example/")
    await ended_job(resources, principal)
    (attempt,) = await claimed(resources)
    async with resources.write() as session:
        await webhook_deliveries.record(session, attempt, Outcome(status=500), retry_seconds=7200, give_up_seconds=3600)
    (delivery,) = await log(resources, endpoint)
    assert delivery.next_attempt_at == delivery.created_at + timedelta(hours=1)


async def claimed(resources: Resources, *, lease_seconds: float = 60, retries: bool = False) -> list:
    async with resources.write() as session:
        await webhook_deliveries.distribute(session)
        await session.flush()
        return await webhook_deliveries.claim(
            session,
            limit=10,
            busy_endpoints=(),
            retries=retries,
            lease_seconds=lease_seconds,
            sealer=resources.sealer,
        )


async def recorded(resources: Resources, attempt: webhook_deliveries.Attempt, outcome: Outcome) -> None:
    async with resources.write() as session:
        await webhook_deliveries.record(session, attempt, outcome, retry_seconds=5, give_up_seconds=3600)


async def test_a_worker_that_dies_after_sending_leaves_it_to_another(resources: Resources) -> None:
    """The receiver hears it twice, with one id."""
    principal, _ = await factories.project(resources)
    with receiving(says(200)) as server:
        endpoint = await factories.webhook_endpoint(resources, principal, server.url)
        await ended_job(resources, principal)
        (attempt,) = await claimed(resources, lease_seconds=0.5)
        assert await claimed(resources, retries=True) == []  # as long as the lease lasts
        await webhook_sending.send(
            with_settings(resources).settings,
            url=attempt.url,
            secrets=attempt.secrets,
            message_id=attempt.delivery_id,
            body=attempt.body,
        )
        async with delivering(resources):
            (delivery,) = await until_over(resources, endpoint)
    assert [got.headers["webhook-id"] for got in server.received] == [delivery.id, delivery.id]
    assert delivery.attempts == 2


async def test_what_comes_late_counts_if_it_is_good_news(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    endpoint = await factories.webhook_endpoint(resources, principal, "https://receiver.example/")
    await ended_job(resources, principal)
    (first,) = await claimed(resources, lease_seconds=-1)
    (second,) = await claimed(resources, retries=True)
    await recorded(resources, first, Outcome(error="late"))
    (delivery,) = await log(resources, endpoint)
    assert (delivery.last_error, delivery.attempts) == (None, 2)
    await recorded(resources, first, Outcome(status=200))
    await recorded(resources, second, Outcome(status=500))
    (delivery,) = await log(resources, endpoint)
    assert (delivery.last_status_code, delivery.next_attempt_at) == (200, None)


async def test_many_workers_do_not_double(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    with receiving(says(200)) as server:
        endpoints = [await factories.webhook_endpoint(resources, principal, f"{server.url}/{n}") for n in range(4)]
        async with delivering(resources), delivering(resources), delivering(resources):
            for _ in range(5):
                await ended_job(resources, principal)
            logs = [await until_over(resources, endpoint, 5) for endpoint in endpoints]
    ids = Counter(got.headers["webhook-id"] for got in server.received)
    assert ids == Counter(delivery.id for deliveries_ in logs for delivery in deliveries_)
    assert len(ids) == 20


async def test_dead_receivers_delay_nobody(resources: Resources) -> None:
    """A hundred of them, which keep the line open as long as they may, and a living one."""
    principal, _ = await factories.project(resources)
    with receiving(receiver.silent) as dead, receiving(says(200)) as living:
        for _ in range(100):
            await factories.webhook_endpoint(resources, principal, dead.url)
        await ended_job(resources, principal)
        async with delivering(resources, webhook_timeout_seconds=2.0):
            await until(lambda: len(dead.received) >= 60)
            await asyncio.sleep(
                2.5
            )  # those have failed, and what they hold now are retries and first attempts of others
            endpoint = await factories.webhook_endpoint(resources, principal, living.url)
            await ended_job(resources, principal, JobStatus.FAILED)
            began = time.monotonic()
            await until_over(resources, endpoint)
            assert time.monotonic() - began < 10
    assert len(living.received) == 1


async def test_one_receiver_gets_one_at_a_time(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    most, now = 0, 0

    def counting(handler: receiver.Handler) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        time.sleep(0.05)
        now -= 1
        handler.reply(200, {})

    with receiving(counting) as server:
        endpoint = await factories.webhook_endpoint(resources, principal, server.url)
        for _ in range(8):
            await ended_job(resources, principal)
        async with delivering(resources):
            began = time.monotonic()
            await until_over(resources, endpoint, 8)
            assert time.monotonic() - began < 6  # one after the other, and not one a second
    assert most == 1


async def test_an_endpoint_goes_with_what_waits_for_it(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    with receiving(says(500)) as server:
        endpoint = await factories.webhook_endpoint(resources, principal, server.url)
        other = await factories.webhook_endpoint(resources, principal, server.url, event_types=["batch.failed"])
        await ended_job(resources, principal)
        (attempt,) = await claimed(resources)
        await ended_job(resources, principal)
        async with resources.write() as session:
            await webhooks.delete(session, principal, endpoint_id=endpoint.id)
        await recorded(resources, attempt, Outcome(status=200))
        async with delivering(resources):
            await asyncio.sleep(1.5)
        assert await log(resources, endpoint) == await log(resources, other) == []
    assert server.received == []


async def test_endpoints_may_go_while_they_are_told(resources: Resources) -> None:
    """Whatever meets whatever: those that stay are told of each end once, and nothing is left of the others."""
    principal, _ = await factories.project(resources)
    with receiving(says(200)) as server:
        staying = await factories.webhook_endpoint(resources, principal, server.url)
        made = [await factories.webhook_endpoint(resources, principal, server.url) for _ in range(10)]

        async def remove(endpoint: WebhookEndpoint) -> None:
            async with resources.write() as session:
                await webhooks.delete(session, principal, endpoint_id=endpoint.id)

        async with delivering(resources), delivering(resources):
            for endpoint in made:
                await asyncio.gather(ended_job(resources, principal), remove(endpoint))
            told = await until_over(resources, staying, len(made))
    assert len({delivery.subject_id for delivery in told}) == len(made)
    assert all(delivery.delivered_at for delivery in told)
    async with resources.read() as session:
        left = (await session.scalars(scoped(WebhookDelivery, principal))).all()
    assert {delivery.endpoint_id for delivery in left} == {staying.id}


async def test_what_is_over_is_forgotten_in_time(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    endpoint = await factories.webhook_endpoint(resources, principal, "https://receiver.example/")
    for _ in range(2):
        await ended_job(resources, principal)
    (attempt,) = await claimed(resources)
    await recorded(resources, attempt, Outcome(status=200))
    await deliveries.forget(with_settings(resources, webhook_log_seconds=3600))
    assert len(await log(resources, endpoint)) == 2
    await deliveries.forget(with_settings(resources, webhook_log_seconds=-1))
    (left,) = await log(resources, endpoint)
    assert left.id != attempt.delivery_id


async def test_secrets_are_not_logged(resources: Resources, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="worker")
    principal, _ = await factories.project(resources)
    endpoint = await factories.webhook_endpoint(resources, principal, "https://receiver.invalid/a-token-in-a-path")
    await ended_job(resources, principal)
    async with delivering(resources, webhook_give_up_seconds=0):
        await until_over(resources, endpoint)
    assert "attempt 1: The URL's host has no address." in caplog.text
    assert secret_of(resources, endpoint) not in caplog.text
    assert "a-token-in-a-path" not in caplog.text


async def test_it_ends_though_it_is_told_to_while_a_place_becomes_free(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`asyncio.wait_for` of Python 3.11 loses a cancellation that comes together with what was waited for."""
    posts: list[deliveries._Post] = []

    class Post(deliveries._Post):
        def __init__(self) -> None:
            super().__init__()
            posts.append(self)

    monkeypatch.setattr(deliveries, "_Post", Post)
    task = asyncio.create_task(deliveries.run(resources))
    await until(lambda: posts and posts[0].changed._waiters)
    posts[0].changed.set()
    await asyncio.sleep(0)
    task.cancel()
    ended, _ = await asyncio.wait([task], timeout=5)
    assert ended == {task}
