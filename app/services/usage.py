"""Figures of what was used, by day: the ledger's, and what the meters of jobs under way show."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Job
from app.db.queries import View, alone, bytes_held, database_now, overseen
from app.db.usage_models import Measure, UsageRecord
from app.services import metering


@dataclass(frozen=True)
class Line:
    """An amount of one measure. `model` is the base model; stored bytes have none."""

    day: datetime
    project_id: str
    model: str | None
    measure: Measure
    amount: int


async def lines(
    session: AsyncSession, view: View, *, start: datetime, end: datetime, project_ids: Collection[str] = ()
) -> list[Line]:
    """One for each day, project, model and measure in [start, end), which are first moments of days in UTC.

    `project_ids` leaves only those of the projects that the view shows anyway.
    """
    found: defaultdict[tuple[datetime, str, str | None, Measure], int] = defaultdict(int)
    columns = (UsageRecord.day, UsageRecord.project_id, UsageRecord.model, UsageRecord.measure)
    query = overseen(UsageRecord, view).where(UsageRecord.day >= start, UsageRecord.day < end)
    query = query.where(UsageRecord.measure != Measure.UPLOADED_BYTES)
    running = overseen(Job, view).where(Job.meter_started_at.is_not(None))
    if project_ids:
        query = query.where(UsageRecord.project_id.in_(project_ids))
        running = running.where(Job.project_id.in_(project_ids))
    sums = query.with_only_columns(*columns, func.sum(UsageRecord.amount)).group_by(*columns)
    for day, project_id, model, measure, amount in await session.execute(sums):
        found[day, project_id, model, Measure(measure)] += int(amount)
    for job in await session.scalars(running):
        for day, measure, amount in metering.readings(job):
            if start <= day < end:
                found[day, job.project_id, job.base_model_id, measure] += amount
    return [Line(*place, amount) for place, amount in sorted(found.items(), key=_order)]


async def record_stored_bytes(session: AsyncSession) -> int:
    """Once a day: what each project's objects take at that moment, which stands for the day.

    Returns how many projects were recorded: none where any worker has done so today.
    """
    today = metering.day_of(await database_now(session))
    await alone(session, "stored bytes")
    done = overseen(UsageRecord, View()).where(UsageRecord.day == today, UsageRecord.measure == Measure.STORED_BYTES)
    if await session.scalar(done.limit(1)) is not None:
        return 0
    rows = [
        UsageRecord(
            id=f"stored-{today:%Y%m%d}-{project_id}",  # which no second sweep can write again
            project_id=project_id,
            organization_id=organization_id,
            day=today,
            measure=Measure.STORED_BYTES,
            amount=int(total),
        )
        for project_id, organization_id, total in await session.execute(bytes_held())
    ]
    session.add_all(rows)
    return len(rows)


def total(found: Iterable[Line], measure: Measure) -> int:
    return sum(line.amount for line in found if line.measure == measure)


def _order(item: tuple[tuple[datetime, str, str | None, Measure], int]) -> tuple[datetime, str, str, str]:
    (day, project_id, model, measure), _ = item
    return day, project_id, model or "", measure
