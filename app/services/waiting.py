"""Telling people why their job waits, where it is for workers: none is there, or none can get the base model."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Event, Job, JobStatus
from app.db.queries import database_now, of_job
from app.services import events, leases, workers


async def reason(session: AsyncSession, job: Job, *, silent_seconds: float, besides: str | None = None) -> str | None:
    """Why no worker takes the job, as a sentence; None if one may. `besides` is a worker that is known not to."""
    checks = job.status == JobStatus.VALIDATING_FILES
    kind, pool = (workers.CPU, None) if checks else (workers.TRAIN, job.pool)
    who = "No worker" if checks else f"No worker of the pool '{job.pool}'"
    living = await workers.living(session, kind, pool=pool, silent_seconds=silent_seconds)
    if not living:
        return f"{who} is running; the job waits for one"
    if all(worker.id == besides or job.base_model_id in worker.unavailable_bases for worker in living):
        return f"{who} can get the base model {job.base_model_id}; the job waits until one can"
    return None


async def tell(session: AsyncSession, *, base_id: str, silent_seconds: float) -> None:
    """Write it to the events of the base model's jobs that nobody takes, unless it is the last thing they say."""
    now = await database_now(session)
    for job in await leases.unclaimed(session, base_id):
        message = await reason(session, job, silent_seconds=silent_seconds)
        last = await session.scalar(of_job(Event, job.id).order_by(Event.sequence.desc()).limit(1))
        if message is not None and (last is None or last.message != message):
            events.add(session, job, message, now=now, level="warn")
