"""What projects may use: set by the operator, kept by each request, told in the refusal."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from openai import AsyncOpenAI, PermissionDeniedError, RateLimitError

from app.db.models import JobStatus
from app.db.usage_models import Measure
from app.ids import utc_now
from app.resources import Resources, open_resources
from app.services import keys, metering, quotas
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


def path(tenant: Tenant) -> str:
    return f"/v1/admin/projects/{tenant.principal.project_id}/limits"


async def limit(operator: httpx.AsyncClient, tenant: Tenant, **values: int | None) -> dict[str, dict[str, int | None]]:
    answer = await operator.post(path(tenant), json=values)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def upload(tenant: Tenant, content: bytes | None = None) -> str:
    made = await tenant.client.files.create(file=("a.jsonl", content or factories.jsonl()), purpose="fine-tune")
    return made.id


async def start(tenant: Tenant, file_id: str) -> str:
    return (await tenant.client.fine_tuning.jobs.create(model=factories.BASE_MODEL, training_file=file_id)).id


async def test_limits_are_shown_set_and_taken_back(operator: httpx.AsyncClient, tenant: Tenant) -> None:
    before = (await operator.get(path(tenant))).json()
    assert (before["object"], before["project_id"]) == ("project.limits", tenant.principal.project_id)
    assert before["files"] == {"value": None, "default": None, "override": None, "used": 0, "left": None}
    await upload(tenant)
    after = await limit(operator, tenant, files=3, running_jobs=0)
    assert after["files"] == {"value": 3, "default": None, "override": 3, "used": 1, "left": 2}
    assert after["running_jobs"]["left"] == 0
    assert (await limit(operator, tenant, files=None))["files"]["value"] is None
    assert (await operator.get(path(tenant))).json()["running_jobs"]["value"] == 0
    for wrong in ({"files": -1}, {"files": "3"}, {"files": True}, {"requests_per_minute": 0}):
        assert (await operator.post(path(tenant), json=wrong)).status_code == 400
    assert (await operator.get("/v1/admin/projects/proj_nothing/limits")).status_code == 404
    async with tenant.http() as http:
        assert (await http.post(path(tenant), json={"files": 100})).status_code == 403


async def test_files_are_counted_and_those_under_way_too(operator: httpx.AsyncClient, tenant: Tenant) -> None:
    await limit(operator, tenant, files=2)
    first = await upload(tenant)
    await tenant.client.uploads.create(filename="b.jsonl", purpose="fine-tune", bytes=10, mime_type="text/jsonl")
    with pytest.raises(PermissionDeniedError) as refused:
        await upload(tenant)
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
    assert "'files' is 2: 2 are used, 0 are left" in refused.value.message
    await tenant.client.files.delete(first)
    await upload(tenant)


async def test_stored_bytes_name_what_is_left_and_nothing_stays(
    operator: httpx.AsyncClient, tenant: Tenant, opened: Resources
) -> None:
    size = len(factories.jsonl())
    await limit(operator, tenant, stored_bytes=2 * size - 1)
    await upload(tenant)
    before = await factories.objects(opened)
    with pytest.raises(PermissionDeniedError) as refused:
        await upload(tenant)
    assert f"{size} are used, {size - 1} are left. This request needs {size}." in refused.value.message
    assert await factories.objects(opened) == before
    with pytest.raises(PermissionDeniedError):
        await tenant.client.uploads.create(filename="b.jsonl", purpose="fine-tune", bytes=size, mime_type="text/jsonl")
    assert (await operator.get(path(tenant))).json()["stored_bytes"]["used"] == size


async def test_of_uploads_at_once_only_as_many_pass_as_there_is_room(
    operator: httpx.AsyncClient, tenant: Tenant
) -> None:
    await limit(operator, tenant, stored_bytes=2 * len(factories.jsonl()))
    results = await asyncio.gather(*(upload(tenant) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(result, str) for result in results) == 2
    assert sum(isinstance(result, PermissionDeniedError) for result in results) == 4


async def test_a_file_may_be_too_large_for_the_project(operator: httpx.AsyncClient, tenant: Tenant) -> None:
    await limit(operator, tenant, upload_bytes=100)
    with pytest.raises(PermissionDeniedError, match="'upload_bytes' is 100"):
        await upload(tenant)
    with pytest.raises(PermissionDeniedError, match="'upload_bytes' is 100"):
        await tenant.client.uploads.create(filename="b.jsonl", purpose="fine-tune", bytes=101, mime_type="text/jsonl")


async def test_jobs_that_wait_are_limited_and_cancelling_makes_room(
    operator: httpx.AsyncClient, tenant: Tenant
) -> None:
    await limit(operator, tenant, queued_jobs=2)
    file_id = await upload(tenant)
    first, _ = await start(tenant, file_id), await start(tenant, file_id)
    with pytest.raises(RateLimitError) as refused:
        await start(tenant, file_id)
    assert refused.value.code == "rate_limit_exceeded"
    assert "'queued_jobs' is 2: 2 are used, 0 are left" in refused.value.message
    assert refused.value.response.headers["retry-after"] == "60"
    await tenant.client.fine_tuning.jobs.cancel(first)
    await start(tenant, file_id)


async def test_at_once_no_more_jobs_wait_than_may(operator: httpx.AsyncClient, tenant: Tenant) -> None:
    await limit(operator, tenant, queued_jobs=2)
    file_id = await upload(tenant)
    results = await asyncio.gather(*(start(tenant, file_id) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(result, str) for result in results) == 2


async def test_resuming_needs_room_in_the_queue(operator: httpx.AsyncClient, tenant: Tenant, opened: Resources) -> None:
    paused = await factories.job(opened, tenant.principal, status=JobStatus.PAUSED)
    await factories.job(opened, tenant.principal)
    await limit(operator, tenant, queued_jobs=1)
    with pytest.raises(RateLimitError):
        await tenant.client.fine_tuning.jobs.resume(paused.id)
    async with tenant.http() as http:  # the official client knows no such status
        assert (await http.get(f"/v1/fine_tuning/jobs/{paused.id}")).json()["status"] == "paused"


async def test_gpu_seconds_used_up_refuse_jobs_until_more_are_allowed(
    operator: httpx.AsyncClient, tenant: Tenant, opened: Resources
) -> None:
    file_id = await upload(tenant)
    month = metering.month_of(utc_now())
    await factories.used(opened, tenant.principal, month, Measure.GPU_MILLISECONDS, 100_000)
    await factories.used(opened, tenant.principal, month - metering.DAY, Measure.GPU_MILLISECONDS, 900_000)
    await factories.used(opened, tenant.principal, month, Measure.CPU_MILLISECONDS, 900_000)
    assert (await limit(operator, tenant, gpu_seconds_per_month=100))["gpu_seconds_per_month"]["left"] == 0
    with pytest.raises(PermissionDeniedError) as refused:
        await start(tenant, file_id)
    assert refused.value.code == "insufficient_quota"
    assert "'gpu_seconds_per_month' is 100: 100 are used" in refused.value.message
    await limit(operator, tenant, gpu_seconds_per_month=101)
    await start(tenant, file_id)


async def test_a_days_uploads_are_limited_until_midnight_and_deleting_helps_nothing(
    operator: httpx.AsyncClient, tenant: Tenant
) -> None:
    size = len(factories.jsonl())
    await limit(operator, tenant, upload_bytes_per_day=size + 10)
    await tenant.client.files.delete(await upload(tenant))
    with pytest.raises(RateLimitError) as refused:
        await upload(tenant)
    assert f"'upload_bytes_per_day' is {size + 10}: {size} are used, 10 are left" in refused.value.message
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 86_400
    assert refused.value.response.headers["x-should-retry"] == "false"
    announced = await tenant.client.uploads.create(
        filename="b.jsonl", purpose="fine-tune", bytes=11, mime_type="text/jsonl"
    )
    with pytest.raises(RateLimitError):
        await tenant.client.uploads.parts.create(announced.id, data=b"x" * 11)
    await tenant.client.uploads.parts.create(announced.id, data=b"x" * 10)
    assert (await operator.get(path(tenant))).json()["upload_bytes_per_day"]["left"] == 0


async def test_a_change_of_limits_is_on_record(operator: httpx.AsyncClient, tenant: Tenant) -> None:
    await limit(operator, tenant, files=3)
    query = {"project_ids[]": tenant.principal.project_id, "event_types[]": "project.limits.updated"}
    entries = (await operator.get("/v1/organization/audit_logs", params=query)).json()["data"]
    assert len(entries) == 1


async def test_what_jobs_write_is_counted_and_refused_to_nobody(
    operator: httpx.AsyncClient, tenant: Tenant, opened: Resources
) -> None:
    await limit(operator, tenant, stored_bytes=100, files=1)
    for _ in range(2):
        await factories.file(opened, tenant.principal, purpose="fine-tune-results", content=b"x" * 90)
    seen = (await operator.get(path(tenant))).json()
    assert (seen["stored_bytes"]["used"], seen["stored_bytes"]["left"]) == (180, 0)
    assert (seen["files"]["used"], seen["files"]["left"]) == (2, 0)
    async with opened.read() as session:
        assert await quotas.used(session, tenant.principal.project_id, quotas.Limit.STORED_BYTES) == 180


async def ask_often(client: AsyncOpenAI) -> None:
    """A server that has just been started may have counted its first requests for itself, and not in Redis."""
    for _ in range(4):
        await client.models.list()


async def test_requests_are_counted_by_project_whatever_key_makes_them(
    operator: httpx.AsyncClient, tenant: Tenant
) -> None:
    another = await tenant.openai()
    await limit(operator, tenant, requests_per_minute=3)
    for client in (tenant.client, another, tenant.client):
        answer = await client.models.with_raw_response.list()
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
    with pytest.raises(RateLimitError, match="'requests_per_minute' is 3, and 0 are left"):
        await ask_often(another)
