"""What a project has and uses at this moment, in figures. A door of its own: sums show nobody a row."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import BigInteger, ColumnElement, Select, case, extract, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Checkpoint, File, FineTunedModel, Job, JobStatus, LogSegment, Upload, UploadStatus
from app.db.usage_models import Measure, UsageRecord


async def stored_bytes(session: AsyncSession, project_id: str) -> int:
    """Of files, checkpoints, models and logs, each object once, and what uploads under way have announced or sent."""
    columns = (
        (File.storage_key, File.bytes, File.project_id),
        (Checkpoint.adapter_key, Checkpoint.adapter_bytes, Checkpoint.project_id),
        (Checkpoint.state_key, Checkpoint.state_bytes, Checkpoint.project_id),
        (FineTunedModel.adapter_key, FineTunedModel.adapter_bytes, FineTunedModel.project_id),
        (LogSegment.storage_key, LogSegment.bytes, LogSegment.project_id),
    )
    objects = union_all(
        *(
            select(key.label("key"), size.label("bytes")).where(owner == project_id, key.is_not(None))
            for key, size, owner in columns
        )
    ).subquery()
    sizes = select(func.max(objects.c.bytes).label("bytes")).group_by(objects.c.key).subquery()
    held = await session.scalar(select(func.coalesce(func.sum(sizes.c.bytes), 0)))
    return int(held or 0) + await _announced_bytes(session, project_id)


async def files(session: AsyncSession, project_id: str) -> int:
    """Files, and uploads under way, which become some."""
    held = await session.scalar(select(func.count()).where(File.project_id == project_id))
    coming = await session.scalar(select(func.count()).where(*_under_way(project_id)))
    return (held or 0) + (coming or 0)


async def jobs(session: AsyncSession, project_id: str, *statuses: JobStatus) -> int:
    query = select(func.count()).where(Job.project_id == project_id, Job.status.in_(statuses))
    return await session.scalar(query) or 0


async def running_jobs(session: AsyncSession, project_id: str) -> int:
    """Those that hold slots; one that was paused does so until it has saved a checkpoint."""
    query = select(func.count()).where(Job.project_id == project_id, Job.claimed_from == JobStatus.QUEUED)
    return await session.scalar(query) or 0


async def gpu_seconds(session: AsyncSession, project_id: str, *, since: datetime) -> int:
    found = (await session.execute(gpu_milliseconds(since=since, project_ids=[project_id]))).one_or_none()
    return 0 if found is None else int(found[1]) // 1000


def gpu_milliseconds(*, since: datetime, project_ids: Iterable[str] | Select[str]) -> Select[str, int]:
    """Each project and the time for which its jobs have held GPUs since the first moment of a day: the ledger's, and
    what the meters of those under way show, up to their last sign of life."""
    began = case(
        (Job.meter_started_at < since, literal(int(since.timestamp()), BigInteger)),
        else_=extract("epoch", Job.meter_started_at),
    )
    running = select(
        Job.project_id, ((extract("epoch", Job.meter_seen_at) - began) * 1000 * Job.meter_gpus).label("amount")
    ).where(
        Job.claimed_from == JobStatus.QUEUED,
        Job.meter_gpus > 0,
        Job.meter_started_at.is_not(None),
        Job.meter_seen_at > since,
        Job.project_id.in_(project_ids),
    )
    recorded = select(UsageRecord.project_id, UsageRecord.amount).where(
        UsageRecord.day >= since,
        UsageRecord.measure == Measure.GPU_MILLISECONDS,
        UsageRecord.project_id.in_(project_ids),
    )
    used = union_all(recorded, running).subquery()
    return select(used.c.project_id, func.sum(used.c.amount).label("amount")).group_by(used.c.project_id)


async def uploaded_bytes(session: AsyncSession, project_id: str, *, day: datetime) -> int:
    query = select(func.sum(UsageRecord.amount)).where(
        UsageRecord.project_id == project_id,
        UsageRecord.day == day,
        UsageRecord.measure == Measure.UPLOADED_BYTES,
    )
    return int(await session.scalar(query) or 0)


async def _announced_bytes(session: AsyncSession, project_id: str) -> int:
    query = select(Upload.bytes, Upload.received_bytes).where(*_under_way(project_id))
    return sum(max(announced, received) for announced, received in await session.execute(query))


def _under_way(project_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Upload.project_id == project_id, Upload.status == UploadStatus.PENDING
