"""Jobs where the wire does not reach: locks, wakes, and the moment of a cancellation."""

import asyncio

import pytest
from sqlalchemy import select

from app.db import after_commit
from app.db.audit_models import Action, AuditEntry
from app.db.models import Job, JobStatus
from app.errors import InvalidRequest
from app.queue.base import VALIDATION_POOL
from app.resources import Resources
from app.schemas.jobs import JobCreate
from app.services import jobs, leases, projects
from tests import factories


async def test_creation_wakes_whoever_validates(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await factories.base_model(resources)
    file = await factories.file(resources, principal)
    waiter = resources.queue.waiter(VALIDATION_POOL)
    body = JobCreate(model=factories.BASE_MODEL, training_file=file.id)
    async with resources.write() as session:
        job = await jobs.create(session, principal, body=body)
        assert after_commit.wakes(session) == {VALIDATION_POOL}
    async with asyncio.timeout(1):
        await waiter.wait(10)
    async with resources.write() as session:
        claimed = await leases.claim(session, owner="w/0", status=JobStatus.VALIDATING_FILES, ttl_seconds=30)
    assert claimed is not None
    assert claimed[1].id == job.id


async def test_a_refused_creation_leaves_nothing(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await factories.base_model(resources)
    body = JobCreate(model=factories.BASE_MODEL, training_file="file-unknown")
    with pytest.raises(InvalidRequest):
        async with resources.write() as session:
            await jobs.create(session, principal, body=body)
    async with resources.read() as session:
        page = await jobs.search(session, principal, after=None, limit=10, metadata=None)
    assert page.rows == []


async def test_a_cancelled_jobs_worker_can_write_nothing_more(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    job = await factories.job(resources, principal)
    async with resources.write() as session:
        claimed = await leases.claim(session, owner="w/0", status=JobStatus.QUEUED, ttl_seconds=30)
    assert claimed is not None
    lease, _ = claimed
    async with resources.write() as session:
        await jobs.cancel(session, principal, job_id=job.id)
    async with resources.read() as session:
        assert await leases.still_held(session, [lease]) == {}
    with pytest.raises(leases.LeaseLost):
        async with resources.write() as session:
            await leases.hold(session, lease)


async def test_of_two_cancellations_at_once_one_writes_the_event(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    job = await factories.job(resources, principal, status=JobStatus.RUNNING, fence=1, lease_owner="w/0")

    async def cancel() -> Job:
        async with resources.write() as session:
            return await jobs.cancel(session, principal, job_id=job.id)

    both = await asyncio.gather(cancel(), cancel())
    assert {one.fence for one in both} == {2}
    async with resources.read() as session:
        page = await jobs.list_events(session, principal, job_id=job.id, after=None, limit=10)
    assert [event.sequence for event in page.rows] == [1]


async def test_the_jobs_of_an_archived_project_are_cancelled_and_those_of_others_are_not(resources: Resources) -> None:
    other, _ = await factories.project(resources)  # the first is the default one, which stays
    gone, _ = await factories.project(resources)
    states = (JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.SUCCEEDED)
    theirs = [await factories.job(resources, gone, status=status) for status in states]
    theirs.append(await factories.job(resources, gone, status=JobStatus.RUNNING, lease_owner="worker-a/0", fence=1))
    kept = await factories.job(resources, other)
    for _ in range(2):
        async with resources.write() as session:
            await projects.archive(session, await projects.get_any(session, project_id=gone.project_id))
    async with resources.read() as session:
        found = {job.id: job for job in await session.scalars(select(Job))}
        ends = (await session.scalars(select(AuditEntry).where(AuditEntry.action == Action.JOB_CANCELLED))).all()
    assert [found[job.id].status for job in theirs] == [*[JobStatus.CANCELLED] * 3, "succeeded", JobStatus.CANCELLED]
    assert (found[theirs[-1].id].lease_owner, found[kept.id].status) == (None, JobStatus.QUEUED)
    assert sorted(end.target_id or "" for end in ends) == sorted(job.id for job in theirs if job.status != "succeeded")
