"""Letting go of objects in storage, which several rows may share: a result file and a model are one archive."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy.ext.asyncio import AsyncSession

from app.db import after_commit
from app.db.models import TERMINAL, Checkpoint, File, FineTunedModel, Job
from app.db.queries import naming
from app.errors import InvalidRequest, LimitReached, NotFound, QuotaUsedUp
from app.storage.base import Storage, StoredObject


async def let_go(session: AsyncSession, *, storage_key: str) -> None:
    """Have an object deleted after the commit, unless a row still refers to it.

    In whatever project: a job may have begun from an adapter that another project shares.
    """
    await session.flush()
    holders = (
        naming(File.storage_key, [storage_key]),
        naming(Checkpoint.adapter_key, [storage_key]),
        naming(FineTunedModel.adapter_key, [storage_key]),
        naming(Job.initial_adapter["key"].as_string(), [storage_key]).where(Job.status.not_in(TERMINAL)),
    )
    for holder in holders:
        if await session.scalar(holder.limit(1)) is not None:
            return
    after_commit.delete_object(session, storage_key)


async def let_go_after(session: AsyncSession, job: Job) -> None:
    """When a job has ended: let go of the adapter that it began from. Its model may be gone, and waited only for it."""
    if job.status in TERMINAL and job.initial_adapter is not None:
        await let_go(session, storage_key=job.initial_adapter["key"])


@asynccontextmanager
async def removed_if_refused(storage: Storage, stored: StoredObject) -> AsyncIterator[None]:
    """An object whose row is refused goes at once. After an outage nobody knows, and the sweep finds out."""
    try:
        yield
    except (InvalidRequest, LimitReached, NotFound, QuotaUsedUp):
        with suppress(OSError):
            await storage.delete(stored.key)
        raise
