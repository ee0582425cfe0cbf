"""The checkpoints of a job."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.models import Checkpoint
from app.db.queries import scoped
from app.errors import NotFound
from app.services import jobs, lookup


async def search(
    session: AsyncSession, principal: Principal, *, job_id: str, after: str | None, limit: int
) -> lookup.Page[Checkpoint]:
    job = await jobs.get(session, principal, job_id=job_id)
    query = scoped(Checkpoint, principal).where(Checkpoint.job_id == job.id)
    return await lookup.page(session, query, cursor=Checkpoint.id, order=(Checkpoint.step,), after=after, limit=limit)


async def get(session: AsyncSession, principal: Principal, *, job_id: str, checkpoint_id: str) -> Checkpoint:
    job = await jobs.get(session, principal, job_id=job_id)
    query = scoped(Checkpoint, principal).where(Checkpoint.job_id == job.id)
    checkpoint = await lookup.find(session, query, Checkpoint.id, checkpoint_id)
    if checkpoint is None:
        sentence = f"Job {job.id} has no checkpoint {lookup.shown(checkpoint_id)}."
        raise NotFound(sentence, param="checkpoint_id", code="checkpoint_not_found")
    return checkpoint
