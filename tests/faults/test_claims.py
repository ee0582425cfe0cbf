"""F24: workers that look for work at the same moment get one job each, and each job has one owner."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from app.db.models import Job, JobStatus
from app.db.queries import scoped
from app.ids import new_id, utc_now
from app.resources import Resources, open_resources
from app.services import leases
from tests import factories
from tests.backends import Site

JOBS = 1000
WORKERS = 4


@pytest.fixture
async def workers(site: Site) -> AsyncIterator[list[Resources]]:
    """Each with connections of its own, as processes have."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_resources(site.settings())) for _ in range(WORKERS)]


async def test_f24_a_thousand_jobs_have_one_owner_each(workers: list[Resources]) -> None:
    principal = await _queued_jobs(workers[0], JOBS)
    claimed = await asyncio.gather(*(_claim_all(worker, f"worker-{n}/0") for n, worker in enumerate(workers)))
    job_ids = [job_id for of_one in claimed for job_id in of_one]
    assert len(job_ids) == len(set(job_ids)) == JOBS
    assert sum(1 for of_one in claimed if of_one) > 1, "they did not work at the same time"
    async with workers[0].read() as session:
        jobs = list(await session.scalars(scoped(Job, principal)))
    for n, of_one in enumerate(claimed):
        assert {job.id for job in jobs if job.lease_owner == f"worker-{n}/0"} == set(of_one)
    assert {(job.fence, job.event_sequence, job.status) for job in jobs} == {(1, 1, JobStatus.RUNNING)}


async def test_f24_a_claim_locks_no_more_than_its_job(workers: list[Resources]) -> None:
    """On PostgreSQL others claim while one has not committed; if it does not, its job is free again."""
    if workers[0].database.is_sqlite:
        pytest.skip("SQLite has one writer")
    await _queued_jobs(workers[0], 3)
    held: list[str] = []
    async with AsyncExitStack() as open_transactions:
        for n, worker in enumerate(workers[:3]):
            session = await open_transactions.enter_async_context(worker.write())
            claimed = await leases.claim(session, owner=f"w-{n}/0", status=JobStatus.QUEUED, ttl_seconds=30)
            assert claimed is not None
            held.append(claimed[0].job_id)
            if n == 2:
                await session.rollback()
        assert len(set(held)) == 3
        assert await _claim_all(workers[3], "w-3/0") == [held[2]]


async def _queued_jobs(resources: Resources, count: int) -> factories.Principal:
    principal, _ = await factories.project(resources)
    first = await factories.job(resources, principal)
    columns = {c.key: getattr(first, c.key) for c in Job.__mapper__.column_attrs}
    async with resources.write() as session:
        session.add_all(Job(**{**columns, "id": new_id("ftjob-"), "created_at": utc_now()}) for _ in range(count - 1))
    return principal


async def _claim_all(resources: Resources, owner: str) -> list[str]:
    found: list[str] = []
    while True:
        async with resources.write() as session:
            claimed = await leases.claim(session, owner=owner, status=JobStatus.QUEUED, ttl_seconds=300)
        if claimed is None:
            return found
        found.append(claimed[0].job_id)
