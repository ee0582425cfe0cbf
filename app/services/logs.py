"""A job's log, as far as the worker has stored it: segments in storage, in the order they were written."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.models import TERMINAL, LogSegment
from app.db.queries import scoped
from app.services import jobs

Position = tuple[int, int]  # (fence, number) of the last segment that was read
START: Position = (-1, -1)


@dataclass(frozen=True)
class News:
    """The segments after a position; nothing will follow them if the job has ended."""

    segments: Sequence[LogSegment]
    is_last: bool


async def after(session: AsyncSession, principal: Principal, *, job_id: str, position: Position) -> News:
    # The status is read first: segments are stored before a job's end is, so none is missed after it.
    job = await jobs.get(session, principal, job_id=job_id)
    query = (
        scoped(LogSegment, principal)
        .where(LogSegment.job_id == job.id, tuple_(LogSegment.fence, LogSegment.number) > position)
        .order_by(LogSegment.fence, LogSegment.number)
    )
    return News(list(await session.scalars(query)), is_last=job.status in TERMINAL)
