"""Every request that changes something leaves its entry in the audit log: a table over the OpenAPI document."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app import main
from app.db.audit_models import AuditEntry
from app.db.models import JobStatus
from app.resources import open_resources
from app.services import keys, workers
from tests import factories
from tests.api import audited_tenancy
from tests.api.audited import CALLS, Actors, writes
from tests.backends import Backends
from tests.conftest import Served, serve, tenant_of
from tests.servers.receiver import receiving, says

assert audited_tenancy  # its calls are in the table, too
JOBS = "/v1/fine_tuning/jobs"
# What is sent by POST and changes nothing, runs nothing and calls nobody.
READING = {"validate_grader"}


@writes("create_file", "file.created")
async def _(by: Actors) -> httpx.Response:
    files = {"file": ("train.jsonl", factories.jsonl())}
    return await by.http.post("/v1/files", files=files, data={"purpose": "fine-tune"})


@writes("delete_file", "file.deleted")
async def _(by: Actors) -> httpx.Response:
    file = await factories.file(by.resources, by.tenant.principal)
    return await by.http.delete(f"/v1/files/{file.id}")


async def upload(by: Actors) -> str:
    body = {"bytes": 3, "filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data"}
    return (await by.http.post("/v1/uploads", json=body)).json()["id"]


async def part(by: Actors, upload_id: str) -> httpx.Response:
    return await by.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("data", b"abc")})


@writes("create_upload", "upload.created")
async def _(by: Actors) -> httpx.Response:
    body = {"bytes": 3, "filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data"}
    return await by.http.post("/v1/uploads", json=body)


@writes("add_upload_part", "upload.part.created")
async def _(by: Actors) -> httpx.Response:
    return await part(by, await upload(by))


@writes("complete_upload", "upload.completed")
async def _(by: Actors) -> httpx.Response:
    upload_id = await upload(by)
    part_id = (await part(by, upload_id)).json()["id"]
    return await by.http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [part_id]})


@writes("cancel_upload", "upload.cancelled")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(f"/v1/uploads/{await upload(by)}/cancel")


@writes("create_fine_tuning_job", "fine_tuning.job.created")
async def _(by: Actors) -> httpx.Response:
    file = await factories.file(by.resources, by.tenant.principal)
    return await by.http.post(JOBS, json={"model": factories.BASE_MODEL, "training_file": file.id})


async def on_job(by: Actors, verb: str, status: JobStatus) -> httpx.Response:
    job = await factories.job(by.resources, by.tenant.principal, status=status)
    return await by.http.post(f"{JOBS}/{job.id}/{verb}")


@writes("cancel_fine_tuning_job", "fine_tuning.job.cancelled")
async def _(by: Actors) -> httpx.Response:
    return await on_job(by, "cancel", JobStatus.QUEUED)


@writes("pause_fine_tuning_job", "fine_tuning.job.paused")
async def _(by: Actors) -> httpx.Response:
    return await on_job(by, "pause", JobStatus.QUEUED)


@writes("resume_fine_tuning_job", "fine_tuning.job.resumed")
async def _(by: Actors) -> httpx.Response:
    return await on_job(by, "resume", JobStatus.PAUSED)


async def shared(by: Actors) -> tuple[str, httpx.Response]:
    _, model = await factories.succeeded_job(by.resources, by.tenant.principal)
    beside, _ = await factories.project(by.resources, beside=by.tenant.principal)
    path = f"/v1/fine_tuning/checkpoints/{model.id}/permissions"
    return path, await by.http.post(path, json={"project_ids": [beside.project_id]})


@writes("create_fine_tuning_checkpoint_permission", "checkpoint.permission.created")
async def _(by: Actors) -> httpx.Response:
    return (await shared(by))[1]


@writes("delete_fine_tuning_checkpoint_permission", "checkpoint.permission.deleted")
async def _(by: Actors) -> httpx.Response:
    path, made = await shared(by)
    return await by.http.delete(f"{path}/{made.json()['data'][0]['id']}")


@writes("delete_model", "model.deleted")
async def _(by: Actors) -> httpx.Response:
    _, model = await factories.succeeded_job(by.resources, by.tenant.principal)
    return await by.http.delete(f"/v1/models/{model.id}")


@writes("run_grader", "grader.run")
async def _(by: Actors) -> httpx.Response:
    grader = {"type": "string_check", "name": "same", "input": "a", "reference": "a", "operation": "eq"}
    body = {"grader": grader, "model_sample": "a"}
    return await by.http.post("/v1/fine_tuning/alpha/graders/run", json=body)


async def endpoint(by: Actors, url: str = "https://receiver.example/") -> str:
    row = await factories.webhook_endpoint(by.resources, by.tenant.principal, url)
    return f"/v1/webhook_endpoints/{row.id}"


@writes("create_webhook_endpoint", "webhook_endpoint.created")
async def _(by: Actors) -> httpx.Response:
    body = {"name": "n", "url": "https://receiver.example/", "event_types": ["fine_tuning.job.failed"]}
    return await by.http.post("/v1/webhook_endpoints", json=body)


@writes("update_webhook_endpoint", "webhook_endpoint.updated")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(await endpoint(by), json={"name": "another"})


@writes("rotate_webhook_endpoint_secret", "webhook_endpoint.secret_rotated")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(f"{await endpoint(by)}/rotate_secret")


@writes("delete_webhook_endpoint", "webhook_endpoint.deleted")
async def _(by: Actors) -> httpx.Response:
    return await by.http.delete(await endpoint(by))


@writes("test_webhook_endpoint", "webhook_endpoint.tested")
async def _(by: Actors) -> httpx.Response:
    with receiving(says(200)) as receiver:
        path = await endpoint(by, receiver.url)
        return await by.http.post(f"{path}/test", json={"event_type": "fine_tuning.job.failed"})


@writes("drain_worker", "worker.drained")
async def _(by: Actors) -> httpx.Response:
    async with by.resources.write() as session:
        await workers.report(session, factories.description("worker-drained"))
    return await by.operator.post("/v1/admin/workers/worker-drained/drain")


@writes("create_model_alias", "model_alias.created")
async def _(by: Actors) -> httpx.Response:
    body = {"id": "another-name", "base_model": factories.BASE_MODEL}
    return await by.operator.post("/v1/admin/model_aliases", json=body)


@writes("delete_model_alias", "model_alias.deleted")
async def _(by: Actors) -> httpx.Response:
    body = {"id": "a-third-name", "base_model": factories.BASE_MODEL}
    await by.operator.post("/v1/admin/model_aliases", json=body)
    return await by.operator.delete("/v1/admin/model_aliases/a-third-name")


def operations() -> set[str]:
    """Of the document: all that is not plainly reading."""
    paths: dict[str, dict[str, Any]] = main.describe()["paths"]
    return {
        operation["operationId"]
        for methods in paths.values()
        for method, operation in methods.items()
        if method not in ("get", "head") and operation["operationId"] not in READING
    }


@pytest.fixture(scope="module")
def at_home(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = backends.new(tmp_path_factory.mktemp("audited") / "data")
    yield from serve(made.settings(outgoing_allowed_networks="127.0.0.0/8"))


@pytest.fixture
async def by(at_home: Served) -> AsyncIterator[Actors]:
    async with tenant_of(at_home) as tenant, open_resources(at_home.settings) as resources:
        async with resources.write() as session:
            key = await keys.add_to_default_project(session, name="operator")
        admin_key = await factories.admin_key(resources, tenant.principal)
        async with tenant.http() as http, client(at_home, admin_key) as admin, client(at_home, key) as operator:
            yield Actors(tenant, http, admin, operator)


def client(served: Served, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=served.url, headers={"Authorization": f"Bearer {key}"}, timeout=20)


def test_no_operation_that_writes_is_left_out() -> None:
    assert set(CALLS) == operations(), "a new route that changes something must record it: see app.services.audit"


@pytest.mark.parametrize("operation", sorted(CALLS))
async def test_a_change_leaves_its_entry(operation: str, by: Actors) -> None:
    action, call = CALLS[operation]
    answer = await call(by)
    assert answer.status_code == 200, answer.text
    (found,) = [one for one in await entries(by, answer.headers["x-request-id"]) if one.action == action]
    assert (found.outcome, found.source_address, found.actor_kind) == ("succeeded", "127.0.0.1", "api_key")
    assert found.user_agent is not None
    assert found.user_agent.startswith("python-httpx/")
    if answer.request.headers["authorization"] == by.http.headers["authorization"]:
        own = by.tenant.principal
        assert (found.actor_id, found.project_id, found.organization_id) == (
            own.key_id,
            own.project_id,
            own.organization_id,
        )
    text = json.dumps([found.details, found.target_id])
    assert by.tenant.key not in text
    assert "receiver.example" not in text


async def entries(by: Actors, request_id: str, *, seconds: float = 10.0) -> list[AuditEntry]:
    """Of a request; what is no change is written a moment after the answer."""
    async with asyncio.timeout(seconds):
        while True:
            async with by.resources.read() as session:
                query = select(AuditEntry).where(AuditEntry.request_id == request_id)
                if found := list(await session.scalars(query)):
                    return found
            await asyncio.sleep(0.05)


async def test_what_is_refused_leaves_none(by: Actors) -> None:
    answer = await by.http.post(JOBS, json={"model": "unknown", "training_file": "file-unknown"})
    assert answer.status_code == 400
    async with by.resources.read() as session:
        query = select(AuditEntry).where(AuditEntry.request_id == answer.headers["x-request-id"])
        assert list(await session.scalars(query)) == []
