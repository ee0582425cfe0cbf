"""A request that is sent again, through the official client and a proxy that loses answers."""

import json
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from openai import AsyncOpenAI, UnprocessableEntityError

from app.db.queries import scoped
from app.db.webhook_models import WebhookEndpoint
from tests import factories
from tests.conftest import Tenant
from tests.faults import proxy
from tests.faults.proxy import Proxy

CREATE = b"POST /v1/fine_tuning/jobs"


def client_through(between: Proxy, tenant: Tenant) -> AsyncOpenAI:
    """With its own two retries, as nobody has set anything."""
    return AsyncOpenAI(api_key=tenant.key, base_url=f"http://127.0.0.1:{between.port}/v1")


async def num_jobs(tenant: Tenant) -> int:
    return len([job async for job in tenant.client.fine_tuning.jobs.list()])


@pytest.mark.parametrize("what", ["the request", "the answer"])
async def test_an_unmodified_client_gets_one_job(tenant: Tenant, what: str) -> None:
    training = await factories.file(tenant.resources, tenant.principal)
    with proxy.running(urlsplit(tenant.url).port or 0) as between:
        async with client_through(between, tenant) as client:
            (between.reset_at if what == "the request" else between.lose_reply)(CREATE)
            job = await client.fine_tuning.jobs.create(model=factories.BASE_MODEL, training_file=training.id)
        assert between.fired.is_set()
    assert await tenant.client.fine_tuning.jobs.retrieve(job.id) == job
    assert await num_jobs(tenant) == 1


async def test_a_key_is_one_job_for_all_who_use_it(tenant: Tenant, other_tenant: Tenant) -> None:
    for whose, expected in ((tenant, 1), (other_tenant, 1)):
        training = await factories.file(whose.resources, whose.principal)
        create = whose.client.with_options(default_headers={"Idempotency-Key": "nightly-2026-11-22"}).fine_tuning.jobs
        job = await create.create(model=factories.BASE_MODEL, training_file=training.id)
        again = await create.with_raw_response.create(model=factories.BASE_MODEL, training_file=training.id)
        assert (again.parse().id, again.headers["idempotent-replayed"]) == (job.id, "true")
        with pytest.raises(UnprocessableEntityError) as refused:
            await create.create(model=factories.BASE_MODEL, training_file=training.id, seed=1)
        assert refused.value.code == "idempotency_key_reused"
        assert await num_jobs(whose) == expected


async def test_the_job_of_a_replayed_answer_is_as_it_is_now(tenant: Tenant) -> None:
    training = await factories.file(tenant.resources, tenant.principal)
    body = json.dumps({"model": factories.BASE_MODEL, "training_file": training.id})
    async with tenant.http() as http:
        headers = {"Idempotency-Key": "a key with spaces", "Content-Type": "application/json"}
        first = await http.post("/v1/fine_tuning/jobs", content=body, headers=headers)
        assert "idempotent-replayed" not in first.headers
        await http.post(f"/v1/fine_tuning/jobs/{first.json()['id']}/cancel")
        again = await http.post("/v1/fine_tuning/jobs", content=body, headers=headers)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        assert again.json()["status"] == "cancelled"
        for bad in ({"Idempotency-Key": ""}, {"Idempotency-Key": "x" * 256}):
            refused = await http.post("/v1/fine_tuning/jobs", content=body, headers=headers | bad)
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "invalid_idempotency_key"


@pytest.mark.parametrize("what", ["the request", "the answer"])
async def test_an_unmodified_client_gets_one_webhook_endpoint(tenant: Tenant, what: str) -> None:
    """And its secret, which is shown in this answer only."""
    request = b"POST /v1/webhook_endpoints"
    with proxy.running(urlsplit(tenant.url).port or 0) as between:
        async with client_through(between, tenant) as client:
            (between.reset_at if what == "the request" else between.lose_reply)(request)
            made = await client.webhooks.create(name="a", url="https://r.example/", event_types=["batch.failed"])
        assert between.fired.is_set()
    assert [one.id async for one in tenant.client.webhooks.list()] == [made.id]
    assert made.signing_secret.startswith("whsec_")


async def test_a_key_is_one_webhook_endpoint(tenant: Tenant, other_tenant: Tenant) -> None:
    for whose in (tenant, other_tenant):
        webhooks = whose.client.with_options(default_headers={"Idempotency-Key": "alerts"}).webhooks
        made = await webhooks.create(name="a", url="https://r.example/", event_types=["batch.failed"])
        again = await webhooks.with_raw_response.create(
            name="a", url="https://r.example/", event_types=["batch.failed"]
        )
        assert (again.parse(), again.headers["idempotent-replayed"]) == (made, "true")
        with pytest.raises(UnprocessableEntityError) as refused:
            await webhooks.create(name="b", url="https://r.example/", event_types=["batch.failed"])
        assert refused.value.code == "idempotency_key_reused"
        await whose.client.webhooks.create(name="a", url="https://r.example/", event_types=["batch.failed"])
        assert len((await whose.client.webhooks.list()).data) == 2
        async with whose.resources.write() as session:
            row = (
                await session.scalars(scoped(WebhookEndpoint, whose.principal).where(WebhookEndpoint.id == made.id))
            ).one()
            row.created_at -= timedelta(hours=25)
        assert (await webhooks.create(name="b", url="https://r.example/", event_types=["batch.failed"])).id != made.id


async def test_without_a_sign_of_repetition_each_post_is_a_job(tenant: Tenant) -> None:
    training = await factories.file(tenant.resources, tenant.principal)
    body = {"model": factories.BASE_MODEL, "training_file": training.id}
    async with tenant.http() as http:
        for _ in range(2):
            assert (await http.post("/v1/fine_tuning/jobs", json=body)).status_code == 200
    assert await num_jobs(tenant) == 2
