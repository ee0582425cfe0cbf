"""The one table of a job's states and the one function that moves a job between them."""

from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import TERMINAL, Job, JobStatus
from app.services import events, metering, webhook_events

_VALIDATING, _QUEUED, _RUNNING, _PAUSED = (
    JobStatus.VALIDATING_FILES,
    JobStatus.QUEUED,
    JobStatus.RUNNING,
    JobStatus.PAUSED,
)
_SUCCEEDED, _FAILED, _CANCELLED = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    _VALIDATING: frozenset({_QUEUED, _FAILED, _CANCELLED}),
    _QUEUED: frozenset({_RUNNING, _PAUSED, _CANCELLED, _FAILED}),
    _RUNNING: frozenset({_QUEUED, _PAUSED, _SUCCEEDED, _FAILED, _CANCELLED}),
    _PAUSED: frozenset({_QUEUED, _CANCELLED}),
    _SUCCEEDED: frozenset(),
    _FAILED: frozenset(),
    _CANCELLED: frozenset(),
}


class IllegalTransition(Exception):
    """The job is not in a state from which it can go there."""

    def __init__(self, current: JobStatus, wanted: JobStatus) -> None:
        super().__init__(f"a job that is {current} cannot become {wanted}")
        self.current = current


def move(
    session: AsyncSession,
    job: Job,
    status: JobStatus,
    *,
    message: str,
    now: datetime,
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> None:
    """Change a job's status and write the event that tells of it, in the caller's transaction; webhooks' too.

    Raises IllegalTransition. The session must hold the job row.
    """
    if status not in TRANSITIONS[job.status]:
        raise IllegalTransition(job.status, status)
    job.status = status
    if status == JobStatus.RUNNING and job.started_at is None:
        job.started_at = now
    if status == JobStatus.QUEUED:
        job.queued_at = now
    if status in TERMINAL:
        job.finished_at = now
        metering.count_end(session, job, now=now)
    if status != JobStatus.RUNNING:
        job.estimated_finish_at = None
    events.add(session, job, message, now=now, level=level, data=data)
    webhook_events.tell(session, job, now=now)
