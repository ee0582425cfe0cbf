"""The operator's endpoints: for keys of the default project, and for no others."""

from collections.abc import AsyncIterator

import httpx
import pytest
from openai import BadRequestError, PermissionDeniedError

from app.resources import Resources, open_resources
from app.services import keys, workers
from tests import factories
from tests.conftest import Served, Tenant


@pytest.fixture
async def opened(served: Served) -> AsyncIterator[Resources]:
    async with open_resources(served.settings) as resources:
        yield resources


@pytest.fixture
async def operator(served: Served, opened: Resources) -> AsyncIterator[httpx.AsyncClient]:
    async with opened.write() as session:
        key = await keys.add_to_default_project(session, name="operator")
    async with httpx.AsyncClient(base_url=served.url, headers={"Authorization": f"Bearer {key}"}) as http:
        yield http


async def test_tenants_and_strangers_are_refused(
    operator: httpx.AsyncClient, other_tenant: Tenant, served: Served
) -> None:
    async with other_tenant.http() as http, httpx.AsyncClient(base_url=served.url) as stranger:
        for method, path in (("GET", "/v1/admin/workers"), ("POST", "/v1/admin/workers/worker-a/drain")):
            refused = await http.request(method, path)
            assert refused.status_code == 403
            assert "default project" in refused.json()["error"]["message"]
            assert (await stranger.request(method, path)).status_code == 401


async def test_workers_are_listed_and_drained(operator: httpx.AsyncClient, opened: Resources) -> None:
    principal, _ = await factories.project(opened)
    await factories.base_model(opened)
    job = await factories.job(opened, principal, lease_owner="worker-listed/0")
    async with opened.write() as session:
        await workers.report(session, factories.description("worker-listed", pool="gpu-a"))

    (listed,) = [one for one in await listing(operator) if one["id"] == "worker-listed"]
    assert listed["object"] == "worker"
    assert (listed["pool"], listed["state"], listed["kinds"]) == ("gpu-a", "ready", ["train", "cpu"])
    assert listed["slots"] == [
        {
            "number": 0,
            "device": "cpu",
            "state": "busy",
            "base_model": factories.BASE_MODEL,
            "quantization": None,
            "job_id": job.id,
        }
    ]
    assert listed["drain_requested_at"] is None

    asked = await operator.post("/v1/admin/workers/worker-listed/drain")
    assert asked.status_code == 200
    assert asked.json()["drain_requested_at"] >= listed["started_at"]
    assert (await operator.post("/v1/admin/workers/worker-listed/drain")).json() == asked.json()
    for unknown in ("worker-nobody", "%00", "x" * 5000):
        missing = await operator.post(f"/v1/admin/workers/{unknown}/drain")
        assert missing.status_code == 404
    async with opened.write() as session:
        await workers.leave(session, "worker-listed")


async def test_aliases_are_made_listed_and_removed(
    operator: httpx.AsyncClient, opened: Resources, tenant: Tenant
) -> None:
    path, alias = "/v1/admin/model_aliases", "acme/gpt-4o-mini-2024-07-18"
    made = await operator.post(path, json={"id": alias, "base_model": factories.BASE_MODEL})
    assert made.status_code == 200
    wanted = {"id": alias, "object": "model_alias", "base_model": factories.BASE_MODEL}
    assert made.json() == {**wanted, "created_at": made.json()["created_at"]}
    assert (await operator.post(path, json={"id": alias, "base_model": factories.BASE_MODEL})).json() == made.json()
    assert (await operator.get(path)).json() == {"object": "list", "data": [made.json()]}
    for wrong in ({"id": "ft:a", "base_model": factories.BASE_MODEL}, {"id": "other", "base_model": "nothing"}):
        assert (await operator.post(path, json=wrong)).status_code == 400

    seen = await tenant.client.models.retrieve(alias)
    assert (seen.owned_by, seen.shutdown_date) == ("system", None)
    assert seen.to_dict()["hone"] == {"kind": "alias", "base_model": factories.BASE_MODEL}
    assert seen in [one async for one in tenant.client.models.list()]
    with pytest.raises(PermissionDeniedError):
        await tenant.client.models.delete(alias)
    async with tenant.http() as http:
        assert (await http.get(f"/v1/models/{alias}/adapter")).json()["error"]["code"] == "adapter_not_found"
        assert (await http.post(path, json=wanted)).status_code == 403
    training = await factories.file(opened, tenant.principal)
    job = await tenant.client.fine_tuning.jobs.create(model=alias, training_file=training.id)
    assert job.model == factories.BASE_MODEL
    assert job.to_dict()["hone"]["requested_model"] == alias  # pyright: ignore

    removed = await operator.delete(f"{path}/{alias}")
    assert removed.json() == {"id": alias, "object": "model_alias", "deleted": True}
    assert (await operator.delete(f"{path}/acme%2Fgpt-4o-mini-2024-07-18")).status_code == 404
    with pytest.raises(BadRequestError) as refused:
        await tenant.client.fine_tuning.jobs.create(model=alias, training_file=training.id)
    assert refused.value.code == "model_not_found"


async def listing(http: httpx.AsyncClient) -> list[dict]:
    answer = await http.get("/v1/admin/workers")
    assert answer.status_code == 200
    assert answer.json()["object"] == "list"
    return answer.json()["data"]
