"""F24: workers that look for work at the same moment get one job each, and each job has one owner."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from app.auth import Principal
from app.db.models import Job, JobStatus
from app.db.queries import scoped
from app.ids import new_id, utc_now
from app.resources import Resources, open_resources
from app.services import leases
from tests import factories
from tests.backends import Site

WAVES, JOBS = 20, 50  # a thousand claims; with few jobs that wait at a time, as it should be
WORKERS = 4


@pytest.fixture
async def workers(site: Site) -> AsyncIterator[list[Resources]]:
    """Each with connections of its own, as processes have."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_resources(site.settings())) for _ in range(WORKERS)]


async def test_f24_a_thousand_jobs_have_one_owner_each(workers: list[Resources]) -> None:
    principal, _ = await factories.project(workers[0])
    claimed: dict[str, str] = {}
    for _ in range(WAVES):
        await _queue_jobs(workers[0], principal, JOBS)
        owners = [f"worker-{n}/0" for n in range(WORKERS)]
        found = await asyncio.gather(*(_claim_all(*one) for one in zip(workers, owners, strict=True)))
        assert sum(len(of_one) for of_one in found) == JOBS
        assert sum(1 for of_one in found if of_one) > 1, "they did not work at the same time"
        claimed |= {job_id: owner for owner, of_one in zip(owners, found, strict=True) for job_id in of_one}
    assert len(claimed) == WAVES * JOBS
    async with workers[0].read() as session:
        jobs = list(await session.scalars(scoped(Job, principal)))
    assert {job.id: job.lease_owner for job in jobs} == claimed
    assert {(job.fence, job.event_sequence, job.status) for job in jobs} == {(1, 1, JobStatus.RUNNING)}


async def test_f24_a_claim_locks_no_more_than_its_job(workers: list[Resources]) -> None:
    """On PostgreSQL others claim while one has not committed; if it does not, its job is free again."""
    if workers[0].database.is_sqlite:
        pytest.skip("SQLite has one writer")
    principal, _ = await factories.project(workers[0])
    await _queue_jobs(workers[0], principal, 3)
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


async def _queue_jobs(resources: Resources, principal: Principal, count: int) -> None:
    first = await factories.job(resources, principal)
    columns = {column.key: getattr(first, column.key) for column in Job.__mapper__.column_attrs}
    async with resources.write() as session:
        session.add_all(Job(**{**columns, "id": new_id("ftjob-"), "created_at": utc_now()}) for _ in range(count - 1))


async def _claim_all(resources: Resources, owner: str) -> list[str]:
    found: list[str] = []
    while True:
        async with resources.write() as session:
            claimed = await leases.claim(session, owner=owner, status=JobStatus.QUEUED, ttl_seconds=300)
        if claimed is None:
            return found
        found.append(claimed[0].job_id)
