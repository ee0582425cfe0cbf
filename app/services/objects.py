"""Letting go of objects in storage, which several rows may share: a result file and a model are one archive."""

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import after_commit
from app.db.models import TERMINAL, Checkpoint, File, FineTunedModel, Job
from app.db.queries import of_project


async def let_go(session: AsyncSession, *, project_id: str, storage_key: str) -> None:
    """Have an object deleted after the commit, unless a row still refers to it. Objects never cross projects."""
    await session.flush()
    holders: tuple[Select[File] | Select[Checkpoint] | Select[FineTunedModel] | Select[Job], ...] = (
        of_project(File, project_id).where(File.storage_key == storage_key),
        of_project(Checkpoint, project_id).where(Checkpoint.adapter_key == storage_key),
        of_project(FineTunedModel, project_id).where(FineTunedModel.adapter_key == storage_key),
        of_project(Job, project_id).where(
            Job.status.not_in(TERMINAL), Job.initial_adapter["key"].as_string() == storage_key
        ),
    )
    for holder in holders:
        if await session.scalar(holder.limit(1)) is not None:
            return
    after_commit.delete_object(session, storage_key)


async def let_go_after(session: AsyncSession, job: Job) -> None:
    """When a job has ended: let go of the adapter that it began from. Its model may be gone, and waited only for it."""
    if job.status in TERMINAL and job.initial_adapter is not None:
        await let_go(session, project_id=job.project_id, storage_key=job.initial_adapter["key"])
