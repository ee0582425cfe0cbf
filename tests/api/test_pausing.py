"""/v1/fine_tuning/jobs/{id}/pause and /resume through the official client."""

from collections.abc import AsyncIterator

import pytest
from openai import APIResponseValidationError, AsyncOpenAI, BadRequestError, NotFoundError

from app.db.models import Job, JobStatus
from app.db.queries import scoped
from tests import factories
from tests.backends import Site
from tests.conftest import Tenant, serve, tenant_of

HELD = {"lease_owner": "w1/0", "lease_expires_at": factories.utc_now(), "claimed_from": JobStatus.QUEUED, "fence": 3}


@pytest.fixture
async def loose(tenant: Tenant) -> AsyncIterator[AsyncOpenAI]:
    """As users have it: answers are taken as they come."""
    async with AsyncOpenAI(api_key=tenant.key, base_url=f"{tenant.url}/v1", max_retries=0) as client:
        yield client


async def row_of(tenant: Tenant, job_id: str) -> Job:
    async with tenant.resources.read() as session:
        return (await session.scalars(scoped(Job, tenant.principal).where(Job.id == job_id))).one()


async def test_a_running_job_is_paused_at_once_and_its_holder_keeps_the_lease(
    tenant: Tenant, loose: AsyncOpenAI
) -> None:
    estimated = factories.utc_now()
    columns = {**HELD, "estimated_finish_at": estimated, "current_step": 5}
    row = await factories.job(tenant.resources, tenant.principal, status=JobStatus.RUNNING, **columns)
    assert (await loose.fine_tuning.jobs.retrieve(row.id)).estimated_finish == int(estimated.timestamp())

    paused = await loose.fine_tuning.jobs.pause(row.id)

    assert paused.to_dict()["status"] == "paused"
    assert (paused.estimated_finish, paused.finished_at, paused.trained_tokens) == (None, None, None)
    after = await row_of(tenant, row.id)
    assert (after.fence, after.lease_owner, after.claimed_from) == (3, "w1/0", JobStatus.QUEUED)
    assert await loose.fine_tuning.jobs.pause(row.id) == paused

    resumed = await loose.fine_tuning.jobs.resume(row.id)
    assert resumed.status == "queued"
    assert await loose.fine_tuning.jobs.resume(row.id) == resumed
    assert (await row_of(tenant, row.id)).lease_owner == "w1/0"
    told = [event.message async for event in loose.fine_tuning.jobs.list_events(row.id)]
    assert told == ["The job has been resumed, moving job to queued state", "The job has been paused"]


async def test_a_queued_job_is_paused_and_cancelled(tenant: Tenant, loose: AsyncOpenAI) -> None:
    row = await factories.job(tenant.resources, tenant.principal)
    assert (await loose.fine_tuning.jobs.pause(row.id)).to_dict()["status"] == "paused"
    assert (await loose.fine_tuning.jobs.cancel(row.id)).status == "cancelled"


async def test_the_body_may_be_empty_or_an_empty_object(tenant: Tenant) -> None:
    row = await factories.job(tenant.resources, tenant.principal)
    async with tenant.http() as http:
        for action, status in (("pause", "paused"), ("resume", "queued")):
            for body in (b"", b"{}"):
                answer = await http.post(
                    f"/v1/fine_tuning/jobs/{row.id}/{action}",
                    content=body,
                    headers={"Content-Type": "application/json"},
                )
                assert (answer.status_code, answer.json()["status"]) == (200, status)


ILLEGAL = [
    (JobStatus.VALIDATING_FILES, "pause", "is still validating its files; only a queued or running job can be paused."),
    (JobStatus.SUCCEEDED, "pause", "has already succeeded; only a queued or running job can be paused."),
    (JobStatus.FAILED, "pause", "has already failed; only a queued or running job can be paused."),
    (JobStatus.CANCELLED, "pause", "has already been cancelled; only a queued or running job can be paused."),
    (JobStatus.VALIDATING_FILES, "resume", "is still validating its files; only a paused job can be resumed."),
    (JobStatus.SUCCEEDED, "resume", "has already succeeded; only a paused job can be resumed."),
    (JobStatus.CANCELLED, "resume", "has already been cancelled; only a paused job can be resumed."),
    (JobStatus.SUCCEEDED, "cancel", "has already succeeded; it cannot be cancelled."),
]


@pytest.mark.parametrize(("status", "action", "sentence"), ILLEGAL)
async def test_what_cannot_be_is_refused_and_not_repeated(
    tenant: Tenant, status: JobStatus, action: str, sentence: str
) -> None:
    row = await factories.job(tenant.resources, tenant.principal, status=status)
    with pytest.raises(BadRequestError) as refused:  # a 409 would be tried again
        await getattr(tenant.client.fine_tuning.jobs, action)(row.id)
    assert f"Job {row.id} {sentence}" in refused.value.message
    assert (refused.value.type, refused.value.code) == ("invalid_request_error", "invalid_job_status")
    assert (await row_of(tenant, row.id)).event_sequence == 0


async def test_a_job_of_another_project_is_not_there(tenant: Tenant, other_tenant: Tenant) -> None:
    row = await factories.job(tenant.resources, tenant.principal)
    for call in (other_tenant.client.fine_tuning.jobs.pause, other_tenant.client.fine_tuning.jobs.resume):
        with pytest.raises(NotFoundError) as missing:
            await call(row.id)
        assert missing.value.code == "fine_tune_not_found"


async def test_a_client_in_strict_mode_does_not_know_paused(tenant: Tenant) -> None:
    """That is OpenAI's schema; its own example of an answer to a pause breaks it."""
    row = await factories.job(tenant.resources, tenant.principal)
    with pytest.raises(APIResponseValidationError):
        await tenant.client.fine_tuning.jobs.pause(row.id)
    assert (await row_of(tenant, row.id)).status == JobStatus.PAUSED


async def test_a_server_may_show_paused_jobs_as_queued_for_strict_clients(site: Site) -> None:
    serving = serve(site.settings(paused_status="queued"))
    async with tenant_of(next(serving)) as tenant:
        row = await factories.job(tenant.resources, tenant.principal)
        jobs = tenant.client.fine_tuning.jobs
        paused = await jobs.pause(row.id)
        assert paused == await jobs.retrieve(row.id)
        assert paused.status == "queued"
        assert paused.to_dict()["hone"]["status"] == "paused"  # pyright: ignore[reportIndexIssue]
        assert [job.id async for job in jobs.list()] == [row.id]
        assert (await jobs.resume(row.id)).to_dict()["hone"]["status"] == "queued"  # pyright: ignore[reportIndexIssue]
    assert list(serving) == []
