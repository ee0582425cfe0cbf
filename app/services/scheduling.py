"""Which job is next: one query, the same on every database. `app.services.leases` runs it, nobody else.

Priority comes first. Among equals it is the turn of the project that has the fewest jobs in hand, which no
project can hold off for ever: whoever has none goes before whoever has one, and jobs in hand end. Among equals
again it is the oldest job's turn, where a job whose base model the claimer has loaded counts as HEAD_START
older than it is: it may overtake, but only jobs that are no more than that much older.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, ColumnElement, Select, Subquery, case, extract, func, literal, or_, select
from sqlalchemy.orm import InstrumentedAttribute, aliased

from app.db import holdings
from app.db.limit_models import ProjectLimits
from app.db.models import Job, JobStatus, Organization, Project
from app.services import metering

HEAD_START = timedelta(minutes=5)
# A worker with a free slot looks for work each second: what waits longer than this waits for a slot.
PREEMPTION_PATIENCE = timedelta(seconds=3)


@dataclass(frozen=True)
class LoadedBase:
    """What a slot's trainer holds: a run on the same base in the same form begins without loading it."""

    model_id: str
    quantization: str | None


@dataclass(frozen=True)
class Caps:
    """The server's defaults of what holds a project's jobs in the queue; a row of `ProjectLimits` comes before them."""

    running_jobs: int | None = None
    gpu_seconds_per_month: int | None = None


NO_CAPS = Caps()


def next_job(
    status: JobStatus,
    *,
    now: datetime,
    caps: Caps = NO_CAPS,
    pool: str | None,
    loaded: LoadedBase | None,
    excluded_bases: Collection[str],
    excluded_jobs: Collection[str],
) -> Select[str]:
    """Selects the id of the job to claim, and locks it where the database locks rows."""
    in_hand = _in_hand(status)
    created = extract("epoch", Job.created_at)
    if loaded is not None:
        is_loaded = (Job.base_model_id == loaded.model_id) & Job.quantization.is_not_distinct_from(loaded.quantization)
        created = created - case((is_loaded, int(HEAD_START.total_seconds())), else_=0)
    return (
        select(Job.id)
        .outerjoin(in_hand, in_hand.c.project_id == Job.project_id)
        .where(
            _is_free(Job, status, since=now),
            Job.project_id.not_in(_disabled()),
            *([Job.project_id.not_in(_at_their_limits(caps, now))] if status == JobStatus.QUEUED else []),
            *([Job.pool == pool] if pool is not None else []),
            *([Job.base_model_id.not_in(excluded_bases)] if excluded_bases else []),
            *([Job.id.not_in(excluded_jobs)] if excluded_jobs else []),
        )
        .order_by(Job.priority.desc(), func.coalesce(in_hand.c.jobs, 0), created, Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Job)
    )


def next_preemption(
    victims: ColumnElement[bool],
    *,
    now: datetime,
    caps: Caps = NO_CAPS,
    pool: str,
    excluded_bases: Collection[str],
) -> Select[str, str]:
    """Selects (waiting job, running job that makes room for it), both locked, for the most urgent that waits.

    `victims` tells which running jobs may be chosen from. A waiting job is given room once: the mark in
    `preempts_job_id` stays until it is claimed.
    """
    waiting = aliased(Job)
    asked_since = now - PREEMPTION_PATIENCE
    return (
        select(waiting.id, Job.id)
        .join(Job, waiting.priority > Job.priority)
        .where(
            _is_free(waiting, JobStatus.QUEUED, since=asked_since),
            waiting.queued_at <= asked_since,
            waiting.project_id.not_in(_disabled()),  # it could not be claimed
            waiting.project_id.not_in(_at_their_limits(caps, now)),
            waiting.pool == pool,
            waiting.preempts_job_id.is_(None),
            *([waiting.base_model_id.not_in(excluded_bases)] if excluded_bases else []),
            Job.status == JobStatus.RUNNING,
            Job.is_preemptible,
            victims,
        )
        .order_by(waiting.priority.desc(), waiting.created_at, Job.priority, Job.started_at.desc(), Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def _is_free(job: type[Job], status: JobStatus, *, since: datetime) -> ColumnElement[bool]:
    return (
        (job.status == status)
        & job.lease_owner.is_(None)
        & or_(job.not_before_at.is_(None), job.not_before_at <= since)
    )


def _in_hand(status: JobStatus) -> Subquery:
    """How many jobs of each project are being worked on."""
    query = select(Job.project_id, func.count().label("jobs")).where(Job.claimed_from == status)
    return query.group_by(Job.project_id).subquery()


def _disabled() -> Select[str]:
    """The projects of which no job may begin. The operator has few of them."""
    of = select(Project.id).join(Organization, Organization.id == Project.organization_id)
    return of.where(or_(Project.disabled_at.is_not(None), Organization.disabled_at.is_not(None)))


def _at_their_limits(caps: Caps, now: datetime) -> Select[str]:
    """The projects of which no further job may run now. It depends on no job, so it is looked up once a query."""
    in_hand = _in_hand(JobStatus.QUEUED)
    measured = select(Project.id)
    if caps.gpu_seconds_per_month is None:
        measured = select(ProjectLimits.project_id).where(ProjectLimits.gpu_seconds_per_month.is_not(None))
    used = holdings.gpu_milliseconds(since=metering.month_of(now), project_ids=measured).subquery()
    return (
        select(Project.id)
        .outerjoin(ProjectLimits, ProjectLimits.project_id == Project.id)
        .outerjoin(in_hand, in_hand.c.project_id == Project.id)
        .outerjoin(used, used.c.project_id == Project.id)
        .where(
            or_(
                func.coalesce(in_hand.c.jobs, 0) >= _cap(ProjectLimits.running_jobs, caps.running_jobs),
                func.coalesce(used.c.amount, 0)
                >= _cap(ProjectLimits.gpu_seconds_per_month, caps.gpu_seconds_per_month) * 1000,
            )
        )
    )


def _cap(own: InstrumentedAttribute[int | None], default: int | None) -> ColumnElement[int | None]:
    """Null where there is no limit, which no number reaches."""
    return func.coalesce(own, literal(default, BigInteger))
