"""Leases: one owner at a time, and a write under a lost lease changes nothing."""

import asyncio
from datetime import timedelta

import pytest

from app.db.models import Job, JobStatus
from app.db.queries import database_now
from app.resources import Resources
from app.services import events, job_states, leases
from app.services.leases import Lease, LeaseLost
from tests import factories

TTL = 30.0


async def make_job(resources: Resources, *, status: JobStatus = JobStatus.QUEUED) -> str:
    principal, _ = await factories.project(resources)
    return (await factories.job(resources, principal, status=status)).id


async def claim(resources: Resources, owner: str = "worker-a/0", *, status: JobStatus = JobStatus.QUEUED):
    async with resources.write() as session:
        claimed = await leases.claim(session, owner=owner, status=status, ttl_seconds=TTL)
    return claimed[0] if claimed else None


async def look(resources: Resources, job_id: str) -> Job:
    async with resources.read() as session:
        return await session.get_one(Job, job_id)


async def expire(resources: Resources, job_id: str) -> None:
    async with resources.write() as session:
        job = await session.get_one(Job, job_id)
        job.lease_expires_at = await database_now(session) - timedelta(seconds=1)


async def touch(resources: Resources, lease: Lease) -> None:
    async with resources.write() as session:
        job, now = await leases.hold(session, lease)
        events.add(session, job, "touched", now=now)


async def test_a_queued_job_becomes_running_when_claimed(resources: Resources) -> None:
    job_id = await make_job(resources)
    lease = await claim(resources)
    job = await look(resources, job_id)
    assert lease == Lease(job.project_id, job_id, "worker-a/0", 1)
    assert job.status == JobStatus.RUNNING


async def test_the_oldest_job_comes_first(resources: Resources) -> None:
    first, second = await make_job(resources), await make_job(resources)
    claimed = [await claim(resources), await claim(resources)]
    assert [lease.job_id for lease in claimed if lease] == [first, second]
    assert await claim(resources) is None


async def test_many_claimers_get_each_job_once(resources: Resources) -> None:
    ids = {await make_job(resources) for _ in range(8)}
    claimed = await asyncio.gather(*(claim(resources, f"worker-{number}/0") for number in range(20)))
    got = [lease.job_id for lease in claimed if lease]
    assert sorted(got) == sorted(ids)


async def test_a_job_that_waits_is_not_claimed(resources: Resources) -> None:
    job_id = await make_job(resources)
    async with resources.write() as session:
        job = await session.get_one(Job, job_id)
        job.not_before_at = await database_now(session) + timedelta(seconds=60)
    assert await claim(resources) is None


async def test_validation_keeps_its_status_while_claimed(resources: Resources) -> None:
    job_id = await make_job(resources, status=JobStatus.VALIDATING_FILES)
    assert await claim(resources) is None
    assert await claim(resources, status=JobStatus.VALIDATING_FILES) is not None
    assert (await look(resources, job_id)).status == JobStatus.VALIDATING_FILES


async def test_a_stale_lease_changes_nothing(resources: Resources) -> None:
    job_id = await make_job(resources)
    stale = await claim(resources)
    assert stale is not None
    async with resources.write() as session:
        job, now = await leases.hold(session, stale)
        leases.hand_back(session, job, message="back", now=now)
    fresh = await claim(resources, "worker-b/0")
    assert fresh is not None
    assert fresh.fence == stale.fence + 1
    before = (await look(resources, job_id)).event_sequence

    with pytest.raises(LeaseLost):
        await touch(resources, stale)

    assert (await look(resources, job_id)).event_sequence == before
    await touch(resources, fresh)


async def test_an_expired_lease_that_nobody_took_is_still_good(resources: Resources) -> None:
    job_id = await make_job(resources)
    lease = await claim(resources)
    assert lease is not None
    await expire(resources, job_id)
    await touch(resources, lease)
    async with resources.write() as session:
        await leases.renew(session, [lease], ttl_seconds=TTL)
    async with resources.write() as session:
        assert await leases.expired(session) == []


async def test_renewing_leaves_other_leases_alone(resources: Resources) -> None:
    mine, other = await make_job(resources), await make_job(resources)
    lease, _ = await claim(resources), await claim(resources, "worker-b/0")
    assert lease is not None
    await expire(resources, mine)
    await expire(resources, other)
    async with resources.write() as session:
        await leases.renew(session, [lease], ttl_seconds=TTL)
    async with resources.write() as session:
        assert [job.id for job in await leases.expired(session)] == [other]


async def test_a_crash_counts_and_three_fail_the_job(resources: Resources) -> None:
    job_id = await make_job(resources)
    for number in range(1, 4):
        lease = await claim(resources)
        assert lease is not None
        async with resources.write() as session:
            job, now = await leases.hold(session, lease)
            leases.crashed(session, job, reason="it died", max_crashes=3, now=now)
        job = await look(resources, job_id)
        assert job.crashes == number
        assert job.status == (JobStatus.FAILED if number == 3 else JobStatus.QUEUED)
        assert job.lease_owner is None
    failed = await look(resources, job_id)
    assert failed.error is not None
    assert failed.error["code"] == "worker_crashed"
    assert await claim(resources) is None


async def test_held_by_finds_a_workers_jobs_and_no_others(resources: Resources) -> None:
    mine, _ = await make_job(resources), await make_job(resources)
    await claim(resources, "worker-a/0")
    await claim(resources, "worker-ab/0")
    async with resources.write() as session:
        assert [job.id for job in await leases.held_by(session, "worker-a")] == [mine]
        assert await leases.owners(session) == {"worker-a", "worker-ab"}


async def test_still_held_forgets_a_cancelled_job(resources: Resources) -> None:
    job_id = await make_job(resources)
    lease = await claim(resources)
    assert lease is not None
    async with resources.read() as session:
        assert await leases.still_held(session, [lease]) == {job_id: JobStatus.RUNNING}
    async with resources.write() as session:
        job = await session.get_one(Job, job_id)
        now = await database_now(session)
        job_states.move(session, job, JobStatus.CANCELLED, message="cancelled", now=now)
        leases.revoke(session, job)
    async with resources.read() as session:
        assert await leases.still_held(session, [lease]) == {}
    with pytest.raises(LeaseLost):
        await touch(resources, lease)
