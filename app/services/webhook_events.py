"""What webhooks tell of, and writing it down in the very transaction in which it happens."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Job, JobStatus
from app.db.webhook_models import WebhookEvent
from app.ids import new_id

# "paused" is Hone's own: nobody is told of it who has not asked for it by name.
OF_STATUS = {
    JobStatus.SUCCEEDED: "fine_tuning.job.succeeded",
    JobStatus.FAILED: "fine_tuning.job.failed",
    JobStatus.CANCELLED: "fine_tuning.job.cancelled",
    JobStatus.PAUSED: "fine_tuning.job.paused",
}
TYPES = tuple(OF_STATUS.values())


def tell(session: AsyncSession, job: Job, *, now: datetime) -> None:
    """Note what the job has just become, if that is something to tell. Any worker finds out who wants to know.

    Nothing is looked up here, so that a job can end without waiting for anything, and the note commits with its end.
    """
    if (kind := OF_STATUS.get(JobStatus(job.status))) is not None:
        row = WebhookEvent(id=new_id("evt_"), project_id=job.project_id, type=kind, subject_id=job.id, created_at=now)
        session.add(row)
