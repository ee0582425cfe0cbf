"""/v1/webhook_endpoints through the official client, in its strict and its usual mode."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from app.services import webhook_sending, webhook_signing, webhooks
from tests import factories
from tests.backends import Backends
from tests.conftest import Served, Tenant, serve, tenant_of
from tests.servers import receiver
from tests.servers.receiver import receiving, says
from worker import deliveries

FINE_TUNING = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


@pytest.fixture(scope="module")
def near(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose owner lets it call this machine."""
    made = backends.new(tmp_path_factory.mktemp("near") / "data")
    settings = made.settings(
        outgoing_allowed_networks="127.0.0.0/8", webhook_timeout_seconds=1, webhook_retry_seconds=0.1
    )
    yield from serve(settings)


@pytest.fixture
async def owner(near: Served) -> AsyncIterator[Tenant]:
    async with tenant_of(near) as made:
        yield made


@pytest.fixture(params=["strict", "loose"])
async def client(request: pytest.FixtureRequest, owner: Tenant) -> AsyncIterator[AsyncOpenAI]:
    strict = request.param == "strict"
    base_url = f"{owner.url}/v1"
    async with AsyncOpenAI(
        api_key=owner.key, base_url=base_url, max_retries=0, _strict_response_validation=strict
    ) as made:
        yield made


async def test_event_types(client: AsyncOpenAI) -> None:
    listed = await client.webhooks.event_types.list()
    assert listed.data == [*FINE_TUNING, "fine_tuning.job.paused"]


async def test_create_and_retrieve(client: AsyncOpenAI) -> None:
    made = await client.webhooks.create(
        name="alerts", url="https://receiver.example/hook", event_types=["fine_tuning.job.failed", "batch.completed"]
    )
    assert made.id.startswith("we_")
    assert (made.object, made.name, made.url) == ("webhook_endpoint", "alerts", "https://receiver.example/hook")
    assert made.event_types == ["fine_tuning.job.failed", "batch.completed"]
    assert made.signing_secret.startswith("whsec_")
    assert made.created_at == made.updated_at
    found = await client.webhooks.retrieve(made.id)
    assert found.to_dict() == {k: v for k, v in made.to_dict().items() if k != "signing_secret"}
    assert found.signing_secret_hint is not None
    assert found.signing_secret_hint.startswith("whsec_...")
    assert len(found.signing_secret_hint) < 16


async def test_list_and_its_pages(client: AsyncOpenAI) -> None:
    assert (await client.webhooks.list()).data == []
    made = [
        (await client.webhooks.create(name=f"n{n}", url="https://r.example/", event_types=["batch.failed"])).id
        for n in range(5)
    ]
    page = await client.webhooks.list(limit=2)
    assert [endpoint.id for endpoint in page.data] == made[:2:-1]
    assert page.has_more
    assert [endpoint.id async for endpoint in client.webhooks.list(limit=2)] == made[::-1]
    assert "signing_secret" not in page.data[0].to_dict()
    with pytest.raises(BadRequestError):
        await client.webhooks.list(after="we_none")


async def test_update(client: AsyncOpenAI) -> None:
    made = await client.webhooks.create(name="a", url="https://r.example/", event_types=["batch.failed"])
    await asyncio.sleep(1.1)
    same = await client.webhooks.update(made.id, name="a", event_types=["batch.failed"])
    assert same.updated_at == made.updated_at
    changed = await client.webhooks.update(made.id, name="b", event_types=["fine_tuning.job.failed"])
    assert (changed.name, changed.url, changed.event_types) == ("b", "https://r.example/", ["fine_tuning.job.failed"])
    assert changed.updated_at is not None
    assert changed.updated_at > changed.created_at
    assert (await client.webhooks.update(made.id, url="https://other.example/")).url == "https://other.example/"
    with pytest.raises(BadRequestError) as refused:
        await client.webhooks.update(made.id, url="https://10.0.0.1/")
    assert refused.value.param == "url"
    assert (await client.webhooks.retrieve(made.id)).url == "https://other.example/"


async def test_delete(client: AsyncOpenAI) -> None:
    made = await client.webhooks.create(name="a", url="https://r.example/", event_types=["batch.failed"])
    gone = await client.webhooks.delete(made.id)
    assert gone.to_dict() == {"id": made.id, "object": "webhook_endpoint.deleted", "deleted": True}
    with pytest.raises(NotFoundError) as missing:
        await client.webhooks.retrieve(made.id)
    assert missing.value.code == "webhook_endpoint_not_found"
    assert missing.value.param == "webhook_endpoint_id"


async def test_a_test_is_sent_and_signed_by_both_secrets(client: AsyncOpenAI) -> None:
    with receiving(says(200)) as server:
        made = await client.webhooks.create(name="a", url=server.url, event_types=["fine_tuning.job.failed"])
        kept = await client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        assert kept.signing_secret != made.signing_secret
        assert kept.signing_secret_hint != made.signing_secret_hint
        result = await client.webhooks.test(made.id, event_type="fine_tuning.job.succeeded")
        only = await client.webhooks.rotate_secret(made.id)
        await client.webhooks.test(made.id, event_type="batch.completed")
    assert result.to_dict() == {
        "object": "webhook_endpoint.test",
        "success": True,
        "status_code": 200,
        "event_type": "fine_tuning.job.succeeded",
        "webhook_endpoint_id": made.id,
    }
    first, second = server.received
    for secret in (made.signing_secret, kept.signing_secret):
        event = client.webhooks.unwrap(first.body, first.headers, secret=secret)
        assert event.type == "fine_tuning.job.succeeded"
        assert abs(event.created_at - time.time()) < 60
        with pytest.raises(ValueError, match="signature"):
            client.webhooks.verify_signature(second.body, second.headers, secret=secret)
    assert client.webhooks.unwrap(second.body, second.headers, secret=only.signing_secret).type == "batch.completed"
    assert (await client.webhooks.retrieve(made.id)).created_at == made.created_at


async def test_a_test_tells_the_status_whatever_it_is(client: AsyncOpenAI) -> None:
    with receiving(says(503)) as server:
        made = await client.webhooks.create(name="a", url=server.url, event_types=["batch.failed"])
        assert (await client.webhooks.test(made.id, event_type="batch.failed")).status_code == 503
        server.behaviour = says(307, Location="http://127.0.0.1:1/")
        assert (await client.webhooks.test(made.id, event_type="batch.failed")).status_code == 307
        server.behaviour = receiver.silent
        with pytest.raises(BadRequestError, match="No answer within 1 seconds") as refused:
            await client.webhooks.test(made.id, event_type="batch.failed")
    assert refused.value.code == "webhook_delivery_failed"


async def test_a_job_that_is_cancelled_is_told_and_logged(owner: Tenant) -> None:
    """From the client's call to the receiver, by a worker that is no part of the server."""
    sending = asyncio.create_task(deliveries.run(owner.resources))
    try:
        with receiving(says(200)) as server:
            made = await owner.client.webhooks.create(name="a", url=server.url, event_types=FINE_TUNING)  # pyright: ignore[reportArgumentType]
            training = await factories.file(owner.resources, owner.principal)
            job = await owner.client.fine_tuning.jobs.create(model=factories.BASE_MODEL, training_file=training.id)
            await owner.client.fine_tuning.jobs.cancel(job.id)
            await owner.client.fine_tuning.jobs.cancel(job.id)
            async with owner.http() as http:
                path = f"/v1/webhook_endpoints/{made.id}/deliveries"
                deadline = time.monotonic() + 20
                while True:
                    listed = (await http.get(path)).json()
                    if listed["data"] and listed["data"][0]["status"] == "delivered":
                        break
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
                missing = await http.get("/v1/webhook_endpoints/we_none/deliveries")
    finally:
        sending.cancel()
        await asyncio.wait([sending])
    (got,) = server.received
    event = owner.client.webhooks.unwrap(got.body, got.headers, secret=made.signing_secret)
    assert event.type == "fine_tuning.job.cancelled"
    assert event.data.id == job.id
    (delivery,) = listed["data"]
    assert (delivery["id"], delivery["event_id"]) == (got.headers["webhook-id"], event.id)
    assert (delivery["attempts"], delivery["last_status_code"], delivery["next_attempt_at"]) == (1, 200, None)
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (delivery["id"], delivery["id"], False)
    assert missing.status_code == 404


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "n" * 257}, "name"),
        ({"name": 7}, "name"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["fine_tuning.job.exploded"]}, "event_types[0]"),
        ({"event_types": "fine_tuning.job.failed"}, "event_types"),
        ({"url": "http://receiver.example/"}, "url"),
        ({"url": "https://user:word@receiver.example/"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "url"),
        ({"url": "ftp://receiver.example/"}, "url"),
        ({"url": "receiver.example"}, "url"),
        ({"url": "https://receiver.example/" + "a" * 2048}, "url"),
    ],
)
async def test_what_is_wrong_is_named(tenant: Tenant, wrong: dict, param: str) -> None:
    """By a server that calls nobody but the public."""
    body = {"name": "a", "url": "https://receiver.example/", "event_types": ["fine_tuning.job.failed"], **wrong}
    async with tenant.http() as http:
        answer = await http.post("/v1/webhook_endpoints", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("content", [b"", b"{}", b'{"keep_old_secret_active_for_24_hours": true}'])
async def test_a_rotation_may_come_without_a_body(tenant: Tenant, content: bytes) -> None:
    made = await factories.webhook_endpoint(tenant.resources, tenant.principal, "https://receiver.example/")
    async with tenant.http() as http:
        path = f"/v1/webhook_endpoints/{made.id}/rotate_secret"
        answer = await http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["signing_secret_hint"] != made.secret_hint


async def test_others_see_nothing_of_it(tenant: Tenant, other_tenant: Tenant) -> None:
    made = await factories.webhook_endpoint(tenant.resources, tenant.principal, "https://receiver.example/")
    theirs = other_tenant.client.webhooks
    assert (await theirs.list()).data == []
    for attempt in (
        theirs.retrieve(made.id),
        theirs.update(made.id, name="mine"),
        theirs.rotate_secret(made.id),
        theirs.test(made.id, event_type="batch.failed"),
        theirs.delete(made.id),
        theirs.retrieve("we_none"),
    ):
        with pytest.raises(NotFoundError):
            await attempt
    async with other_tenant.http() as http:
        assert (await http.get(f"/v1/webhook_endpoints/{made.id}/deliveries")).status_code == 404
    assert (await tenant.client.webhooks.retrieve(made.id)).name == "test"


async def test_tests_with_a_slow_name_server_stall_nobody_else(
    near: Served, owner: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, released = socket.getaddrinfo, threading.Event()

    def look_up(host: str, *args: Any, **kwargs: Any) -> list:
        if host == "slow.example":
            released.wait(60)
            host = "127.0.0.1"
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        async with tenant_of(near) as other:
            with receiving(says(200)) as server:
                slow = f"http://slow.example:{server.port}/"
                endpoint = await factories.webhook_endpoint(owner.resources, owner.principal, slow)
                tests = [owner.client.webhooks.test(endpoint.id, event_type="batch.failed") for _ in range(7)]
                refusals = [str(one) for one in await asyncio.gather(*tests, return_exceptions=True)]
                assert sum("Too many host names" in one for one in refusals) == 3
                assert sum("No answer within 1 seconds" in one for one in refusals) == 4

                theirs = await factories.webhook_endpoint(other.resources, other.principal, server.url)
                assert (await other.client.webhooks.test(theirs.id, event_type="batch.failed")).status_code == 200
                delivered = await webhook_sending.send(
                    near.settings, url=server.url, secrets=[webhook_signing.new_secret()], message_id="wh_1", body=b"{}"
                )
                assert delivered.is_success
                released.set()
                await asyncio.sleep(0.5)
                assert (await owner.client.webhooks.test(endpoint.id, event_type="batch.failed")).status_code == 200
    finally:
        released.set()


async def test_a_project_has_so_many_and_no_more(tenant: Tenant) -> None:
    for _ in range(webhooks.MAX_ENDPOINTS - 1):
        await factories.webhook_endpoint(tenant.resources, tenant.principal, "https://receiver.example/")
    made = [
        tenant.client.webhooks.create(name="a", url="https://r.example/", event_types=["batch.failed"])
        for _ in range(4)
    ]
    answers = await asyncio.gather(*made, return_exceptions=True)
    assert sum(isinstance(answer, BadRequestError) for answer in answers) == 3
