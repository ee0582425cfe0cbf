"""Who works on a job. A lease is an owner, an expiry and a fence; a write under a lost lease changes nothing."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import after_commit
from app.db.limit_models import ProjectLimits
from app.db.models import Job, JobStatus
from app.db.queries import alone, database_now
from app.queue.base import VALIDATION_POOL
from app.services import events, job_states, metering, scheduling
from app.services.scheduling import NO_CAPS, Caps, LoadedBase
from app.storage import keys


class LeaseLost(Exception):
    """Somebody else owns the job now, or nobody: stop, and write nothing."""


@dataclass(frozen=True)
class Lease:
    """`owner` is "<worker id>/<slot>"; `fence` is the job's fence at the claim."""

    project_id: str
    job_id: str
    owner: str
    fence: int

    def object_key(self, name: str) -> str:
        """Where the holder puts what is to be kept."""
        return keys.job_object(self.project_id, self.job_id, self.fence, name)


async def claim(
    session: AsyncSession,
    *,
    owner: str,
    status: JobStatus,
    ttl_seconds: float,
    pool: str | None = None,
    loaded: LoadedBase | None = None,
    excluded_bases: Collection[str] = (),
    excluded_jobs: Collection[str] = (),
    gpus: int = 0,
    caps: Caps = NO_CAPS,
) -> tuple[Lease, Job] | None:
    """Take the next free job in `status` (validating_files or queued), or return None.

    Which job is next is said in `app.services.scheduling`; `pool` limits the choice to one pool's jobs, `loaded`
    is the base model that the claimer has warm, and jobs on `excluded_bases` are left to others, as are
    `excluded_jobs`, and those of projects that are at their limits (`caps` are the defaults). `gpus` is how many the
    claimer's slot has. A queued job becomes running in the same transaction. Two claimers never get the same job: on
    PostgreSQL the rows being claimed are skipped, on SQLite a write session has the database to itself.
    """
    now = await database_now(session)
    if status == JobStatus.QUEUED and await _running_is_limited(session, caps):
        await alone(session, "claims of a limited number")  # two that count at once would both find room for one
    following = scheduling.next_job(
        status, now=now, caps=caps, pool=pool, loaded=loaded, excluded_bases=excluded_bases, excluded_jobs=excluded_jobs
    )
    claimed = await session.scalar(
        update(Job)
        .where(Job.id == following.scalar_subquery())
        .values(
            lease_owner=owner,
            lease_expires_at=now + timedelta(seconds=ttl_seconds),
            claimed_from=status,
            fence=Job.fence + 1,
            preempts_job_id=None,
        )
        .returning(Job.id)
    )
    if claimed is None:
        return None
    job = await session.get_one(Job, claimed, populate_existing=True)
    if status == JobStatus.QUEUED:
        resumed = job.started_at is not None
        message = "Fine-tuning job resumed" if resumed else "Fine-tuning job started"
        job_states.move(session, job, JobStatus.RUNNING, message=message, now=now)
        metering.start(job, gpus=gpus, now=now)
    return Lease(job.project_id, job.id, owner, job.fence), job


async def preempt(
    session: AsyncSession,
    held: Sequence[Lease],
    *,
    pool: str,
    excluded_bases: Collection[str] = (),
    caps: Caps = NO_CAPS,
) -> Lease | None:
    """Which of the `held` leases must make room for a job that waits, or None. The waiting job is marked as served.

    The holder stops that run at a checkpoint and hands the job back; its slot then claims what is most urgent.
    """
    now = await database_now(session)
    query = scheduling.next_preemption(_any_of(held), now=now, caps=caps, pool=pool, excluded_bases=excluded_bases)
    found = (await session.execute(query)).one_or_none()
    if found is None:
        return None
    waiting, running = found
    await session.execute(update(Job).where(Job.id == waiting).values(preempts_job_id=running))
    return next(lease for lease in held if lease.job_id == running)


async def hold(session: AsyncSession, lease: Lease) -> tuple[Job, datetime]:
    """Guard the rest of the transaction: returns the job, locked, and the database's time.

    Raises LeaseLost when the lease is no longer this worker's. Every write of a worker begins here.
    An expired lease that nobody took is still good.
    """
    now = await database_now(session)
    result = await session.scalar(
        update(Job)
        .where(Job.id == lease.job_id, Job.fence == lease.fence, Job.lease_owner == lease.owner)
        .values(meter_seen_at=now)
        .returning(Job.id)
    )
    if result is None:
        raise LeaseLost(lease.job_id)
    return await session.get_one(Job, lease.job_id, populate_existing=True), now


async def hold_last(session: AsyncSession, lease: Lease) -> tuple[Job, datetime]:
    """As `hold`, also after the lease was given back, until the next claim: for what is told late of a run.

    Raises LeaseLost when the job was claimed again, or cancelled.
    """
    now = await database_now(session)
    of_lease = (Job.id == lease.job_id) & (Job.fence == lease.fence)
    found = await session.scalar(update(Job).where(of_lease).values(fence=Job.fence).returning(Job.id))
    if found is None:
        raise LeaseLost(lease.job_id)
    return await session.get_one(Job, lease.job_id, populate_existing=True), now


async def seen_by(session: AsyncSession, lease: Lease) -> Job | None:
    """The job, as long as nobody has claimed it after this lease; a cancelled one is claimed by nobody."""
    query = select(Job).where(Job.id == lease.job_id, or_(Job.fence == lease.fence, Job.status == JobStatus.CANCELLED))
    return await session.scalar(query)


async def renew(session: AsyncSession, held: Sequence[Lease], *, ttl_seconds: float) -> None:
    """Push the expiry of the leases that are still this worker's, in one statement."""
    if not held:
        return
    now = await database_now(session)
    await session.execute(
        update(Job)
        .where(_any_of(held))
        .values(lease_expires_at=now + timedelta(seconds=ttl_seconds), meter_seen_at=now)
    )


async def still_held(session: AsyncSession, held: Sequence[Lease]) -> dict[str, JobStatus]:
    """The jobs whose leases are still this worker's, and their statuses: one query for all its slots."""
    rows = await session.execute(select(Job.id, Job.status).where(_any_of(held)))
    return {job_id: JobStatus(status) for job_id, status in rows}


def is_given_up(status: JobStatus) -> bool:
    """Of a job under a lease: it was paused, and perhaps resumed since. The holder stops at a checkpoint and lets go.

    Until then nobody else can claim it: what the holder still saves is what the job goes on from.
    """
    return status in (JobStatus.PAUSED, JobStatus.QUEUED)


def release(session: AsyncSession, job: Job) -> None:
    """End a lease. The job keeps its status, or has been moved by the caller in the same transaction."""
    job.lease_owner = None
    job.lease_expires_at = None
    job.claimed_from = None
    metering.stop(session, job)
    if job.status == JobStatus.VALIDATING_FILES:
        after_commit.wake(session, VALIDATION_POOL)
    elif job.status == JobStatus.QUEUED:
        after_commit.wake(session, job.pool)


def revoke(session: AsyncSession, job: Job) -> None:
    """Take a job from whoever works on it: the raised fence makes each later write of theirs change nothing."""
    job.fence += 1
    release(session, job)


def hand_back(session: AsyncSession, job: Job, *, message: str, now: datetime, level: str = "info") -> None:
    """Return a job to the state it was claimed from, for anyone to take. Counts nothing."""
    if job.status == JobStatus.RUNNING:
        job_states.move(session, job, JobStatus.QUEUED, message=message, now=now, level=level)
    release(session, job)


def leave_to_others(session: AsyncSession, job: Job, *, message: str, now: datetime) -> None:
    """Give a job back that this worker can do nothing with. Counts nothing; the worker must not claim it again."""
    if job.status == JobStatus.RUNNING:
        hand_back(session, job, message=message, now=now, level="warn")
    else:
        events.add(session, job, message, now=now, level="warn")
        release(session, job)


def excused(session: AsyncSession, job: Job, *, reason: str, now: datetime) -> None:
    """Give a job back after a run that failed before its first step, for which its slot is blamed: once a job."""
    job.has_been_excused = True
    hand_back(session, job, message=f"{reason}; the job will be tried again", now=now, level="warn")


def crashed(session: AsyncSession, job: Job, *, reason: str, max_crashes: int, now: datetime) -> None:
    """Count an unexplained death: the job goes back, or fails when it has died too often without progress.

    A run that was about to stop for a pause has only lost its steps since the last checkpoint. That counts nothing.
    """
    if is_given_up(job.status):
        events.add(session, job, f"{reason}; the job goes on from its last checkpoint", now=now, level="warn")
        release(session, job)
        return
    job.crashes += 1
    if job.crashes < max_crashes:
        again = f"{reason}; the job will be tried again"
        hand_back(session, job, message=again, now=now, level="warn")
        return
    verdict = f"The job was stopped after {job.crashes} crashes without a new checkpoint. Last: {reason}."
    job.error = {"code": "worker_crashed", "message": verdict, "param": None}
    job_states.move(session, job, JobStatus.FAILED, message=verdict, now=now, level="error")
    release(session, job)


async def expired(session: AsyncSession) -> list[Job]:
    """Jobs whose holder has been silent for longer than its lease, locked."""
    now = await database_now(session)
    query = select(Job).where(Job.lease_expires_at < now).with_for_update(skip_locked=True)
    return list(await session.scalars(query))


async def unclaimed(session: AsyncSession, base_model_id: str) -> list[Job]:
    """The jobs on a base model that wait for a worker, locked; those that somebody claims right now are left out."""
    waits = Job.status.in_((JobStatus.VALIDATING_FILES, JobStatus.QUEUED)) & Job.lease_owner.is_(None)
    query = select(Job).where(waits, Job.base_model_id == base_model_id).with_for_update(skip_locked=True)
    return list(await session.scalars(query))


async def owners(session: AsyncSession) -> set[str]:
    """The ids of all workers that hold a lease."""
    held = await session.scalars(select(Job.lease_owner).where(Job.lease_owner.is_not(None)).distinct())
    return {owner.partition("/")[0] for owner in held if owner}


async def jobs_by_owner(session: AsyncSession) -> dict[str, str]:
    """Who works on what: owners of leases, and the ids of their jobs."""
    held = await session.execute(select(Job.lease_owner, Job.id).where(Job.lease_owner.is_not(None)))
    return {owner: job_id for owner, job_id in held if owner is not None}


async def held_by(session: AsyncSession, worker_id: str) -> list[Job]:
    """The jobs that a worker holds, locked."""
    query = select(Job).where(Job.lease_owner.startswith(f"{worker_id}/", autoescape=True)).with_for_update()
    return list(await session.scalars(query))


async def fences(session: AsyncSession, job_ids: Collection[str]) -> dict[str, int]:
    """The fences of those of the jobs that somebody works on."""
    query = select(Job.id, Job.fence).where(Job.id.in_(job_ids), Job.lease_owner.is_not(None))
    return {job_id: fence for job_id, fence in await session.execute(query)}  # noqa: C416 - rows are not pairs


def _any_of(held: Iterable[Lease]):
    return or_(*(and_(Job.id == x.job_id, Job.fence == x.fence, Job.lease_owner == x.owner) for x in held))


async def _running_is_limited(session: AsyncSession, caps: Caps) -> bool:
    if caps.running_jobs is not None:
        return True
    own = select(ProjectLimits.project_id).where(ProjectLimits.running_jobs.is_not(None)).limit(1)
    return await session.scalar(own) is not None
