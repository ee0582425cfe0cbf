"""Letting go of objects in storage, which several rows may share: a result file and a model are one archive."""

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db import after_commit
from app.db.models import Checkpoint, File, FineTunedModel
from app.db.queries import scoped


async def let_go(session: AsyncSession, principal: Principal, *, storage_key: str) -> None:
    """Have an object deleted after the commit, unless a row still refers to it. Objects never cross projects."""
    await session.flush()
    holders: tuple[Select[File] | Select[Checkpoint] | Select[FineTunedModel], ...] = (
        scoped(File, principal).where(File.storage_key == storage_key),
        scoped(Checkpoint, principal).where(Checkpoint.adapter_key == storage_key),
        scoped(FineTunedModel, principal).where(FineTunedModel.adapter_key == storage_key),
    )
    for holder in holders:
        if await session.scalar(holder.limit(1)) is not None:
            return
    after_commit.delete_object(session, storage_key)
