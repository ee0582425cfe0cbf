"""What a job uses, from its claim on a slot to the end of the lease.

While a lease lasts its meter is a few columns of the job's row, moved by the writes that are made under the lease
anyway: a heartbeat costs nothing more. When the lease ends, in whatever way, what the meter shows goes to the ledger
(`UsageRecord`) in the same transaction. So nothing is counted twice, and what a dead worker has used counts up to its
last sign of life.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Job, JobStatus
from app.db.usage_models import Measure, UsageRecord
from app.ids import new_id

DAY = timedelta(days=1)
_ENDS = {
    JobStatus.SUCCEEDED: Measure.JOBS_SUCCEEDED,
    JobStatus.FAILED: Measure.JOBS_FAILED,
    JobStatus.CANCELLED: Measure.JOBS_CANCELLED,
}


class Reading(NamedTuple):
    day: datetime
    measure: Measure
    amount: int


def start(job: Job, *, gpus: int, now: datetime) -> None:
    """At a claim. `gpus` is how many the slot has; without any its time is the CPU's."""
    job.meter_started_at = job.meter_seen_at = now
    job.meter_gpus = gpus
    job.meter_tokens = 0


def count_tokens(session: AsyncSession, job: Job, tokens: int, *, now: datetime) -> None:
    """Of a step that is on record for the first time: what a resumed run repeats was trained before."""
    if job.meter_started_at is None:  # claimed by a version that had no meter
        return
    today = day_of(now)
    if day_of(job.meter_started_at) < today:  # what was trained before midnight is of the day before
        _write(session, job, readings(job, until=today))
        job.meter_started_at = today
        job.meter_tokens = 0
    job.meter_tokens += tokens


def stop(session: AsyncSession, job: Job) -> None:
    """At the end of a lease, however it ends. Of one that trains nothing, as validation's, there is no meter."""
    _write(session, job, readings(job))
    job.meter_started_at = job.meter_seen_at = None
    job.meter_gpus = job.meter_tokens = 0


def count_end(session: AsyncSession, job: Job, *, now: datetime) -> None:
    """Of a job that has come to its end, on the day on which it has."""
    _write(session, job, [Reading(day_of(now), _ENDS[job.status], 1)])


def readings(job: Job, *, until: datetime | None = None) -> Iterator[Reading]:
    """What the meter shows, by day: up to the holder's last sign of life, or to `until`."""
    begin, end = job.meter_started_at, until or job.meter_seen_at
    if begin is None or end is None:
        return
    measure = Measure.GPU_MILLISECONDS if job.meter_gpus else Measure.CPU_MILLISECONDS
    if job.meter_tokens:
        yield Reading(day_of(begin), Measure.TRAINED_TOKENS, job.meter_tokens)
    while begin < end:
        day = day_of(begin)
        midnight = min(day + DAY, end)
        yield Reading(day, measure, (midnight - begin) // timedelta(milliseconds=1) * max(job.meter_gpus, 1))
        begin = midnight


def month_of(moment: datetime) -> datetime:
    """Its first moment, in UTC."""
    return day_of(moment).replace(day=1)


def day_of(moment: datetime) -> datetime:
    """Its first moment, in UTC."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _write(session: AsyncSession, job: Job, found: Iterator[Reading] | list[Reading]) -> None:
    session.add_all(
        UsageRecord(
            id=new_id("usage_"),
            project_id=job.project_id,
            organization_id=job.organization_id,
            job_id=job.id,
            day=day,
            model=job.base_model_id,
            measure=measure,
            amount=amount,
        )
        for day, measure, amount in found
        if amount
    )
