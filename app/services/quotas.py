"""What a project may use: the settings' defaults, what the operator has set instead, and who is refused for it.

Counted are rows, in the transaction that has just added one, and by one transaction of a project at a time: of two
requests that would both take what is left, the second sees the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db import holdings
from app.db.audit_models import Action
from app.db.limit_models import ProjectLimits
from app.db.models import Job, JobStatus
from app.db.queries import alone, database_now, of_project
from app.db.usage_models import Measure, UsageRecord
from app.errors import LimitReached, QuotaUsedUp
from app.ids import new_id
from app.schemas.limits import LimitRead, LimitsRead
from app.services import audit, metering
from app.services.scheduling import Caps
from app.settings import Settings


class Limit(StrEnum):
    REQUESTS_PER_MINUTE = "requests_per_minute"
    UPLOAD_BYTES = "upload_bytes"
    UPLOAD_BYTES_PER_DAY = "upload_bytes_per_day"
    STORED_BYTES = "stored_bytes"
    FILES = "files"
    QUEUED_JOBS = "queued_jobs"
    RUNNING_JOBS = "running_jobs"
    GPU_SECONDS_PER_MONTH = "gpu_seconds_per_month"
    TRAINED_TOKENS_PER_JOB = "trained_tokens_per_job"


@dataclass(frozen=True)
class Limits:
    """None is no limit."""

    requests_per_minute: int | None = None
    upload_bytes: int | None = None
    upload_bytes_per_day: int | None = None
    stored_bytes: int | None = None
    files: int | None = None
    queued_jobs: int | None = None
    running_jobs: int | None = None
    gpu_seconds_per_month: int | None = None
    trained_tokens_per_job: int | None = None


NAMES = tuple(field.name for field in fields(Limits))


def defaults(settings: Settings) -> Limits:
    named = {name: name if name == "requests_per_minute" else f"limit_{name}" for name in NAMES}
    return Limits(**{name: getattr(settings, setting) for name, setting in named.items()})


def caps(settings: Settings) -> Caps:
    """What scheduling goes by."""
    return Caps(settings.limit_running_jobs, settings.limit_gpu_seconds_per_month)


async def own(session: AsyncSession, project_id: str) -> Limits:
    """What was set for the project; None where the default holds."""
    row = await session.scalar(of_project(ProjectLimits, project_id))
    return Limits() if row is None else Limits(**{name: getattr(row, name) for name in NAMES})


async def of(session: AsyncSession, project_id: str, settings: Settings) -> Limits:
    """What holds for the project."""
    usual, chosen = defaults(settings), await own(session, project_id)
    return Limits(
        **{
            name: default if (value := getattr(chosen, name)) is None else value
            for name, default in vars(usual).items()
        }
    )


async def change(session: AsyncSession, project_id: str, changes: Mapping[str, int | None]) -> None:
    """Set some of a project's limits; None takes the default back."""
    await alone(session, f"limits {project_id}")
    row = await session.scalar(of_project(ProjectLimits, project_id))
    if row is None:
        row = ProjectLimits(project_id=project_id)
        session.add(row)
    for name in NAMES:
        if name in changes:
            setattr(row, name, changes[name])
    audit.record(session, None, Action.LIMITS_CHANGED, project_id, project_id=project_id, **dict[str, Any](changes))
    await session.flush()


async def used(session: AsyncSession, project_id: str, limit: Limit) -> int | None:
    """How much of a limit is taken; None for those of a single request, upload or job."""
    if limit is Limit.STORED_BYTES:
        return await holdings.stored_bytes(session, project_id)
    if limit is Limit.FILES:
        return await holdings.files(session, project_id)
    if limit is Limit.QUEUED_JOBS:
        return await holdings.jobs(session, project_id, JobStatus.VALIDATING_FILES, JobStatus.QUEUED)
    if limit is Limit.RUNNING_JOBS:
        return await holdings.running_jobs(session, project_id)
    if limit is Limit.GPU_SECONDS_PER_MONTH:
        month = metering.month_of(await database_now(session))
        return await holdings.gpu_seconds(session, project_id, since=month)
    if limit is Limit.UPLOAD_BYTES_PER_DAY:
        day = metering.day_of(await database_now(session))
        return await holdings.uploaded_bytes(session, project_id, day=day)
    return None


async def report(session: AsyncSession, project_id: str, settings: Settings) -> LimitsRead:
    """What a project may use, what was set for it, and what it uses now."""
    usual, chosen = defaults(settings), await own(session, project_id)
    holding = await of(session, project_id, settings)
    found: dict[str, LimitRead] = {}
    for limit in Limit:
        value, taken = getattr(holding, limit), await used(session, project_id, limit)
        left = None if value is None or taken is None else max(0, value - taken)
        found[limit] = LimitRead(
            value=value, default=getattr(usual, limit), override=getattr(chosen, limit), used=taken, left=left
        )
    return LimitsRead.model_validate({"project_id": project_id, **found})


async def keep(session: AsyncSession, project_id: str, settings: Settings, added: Mapping[Limit, int]) -> None:
    """Refuse what this transaction has just added, if it is beyond a limit: raises QuotaUsedUp or LimitReached."""
    await session.flush()
    limits = await of(session, project_id, settings)
    chosen = {limit: most for limit in added if (most := getattr(limits, limit)) is not None}
    if chosen:
        await alone(session, f"limits {project_id}")
    for limit, most in chosen.items():
        total = await used(session, project_id, limit) or 0
        if total > most:
            before = total - added[limit]
            raise await _refusal(session, limit, _sentence(limit, most, before, asked=added[limit]))


async def require_left(session: AsyncSession, project_id: str, settings: Settings, *needed: Limit) -> None:
    """Refuse before any work is done, if nothing at all is left. Raises QuotaUsedUp or LimitReached."""
    limits = await of(session, project_id, settings)
    for limit in needed:
        most = getattr(limits, limit)
        if most is not None and (taken := await used(session, project_id, limit) or 0) >= most:
            raise await _refusal(session, limit, _sentence(limit, most, taken))


async def require_upload(session: AsyncSession, project_id: str, settings: Settings, size: int) -> None:
    """Refuse a file of so many bytes that is larger than the project may upload. Raises QuotaUsedUp."""
    most = (await of(session, project_id, settings)).upload_bytes
    if most is not None and size > most:
        raise QuotaUsedUp(f"The project's limit 'upload_bytes' is {most}, and the file has {size}.")


async def beyond_trained_tokens(session: AsyncSession, job: Job, settings: Settings, tokens: int) -> str | None:
    """Why a job may not train on so many tokens, or None."""
    most = (await of(session, job.project_id, settings)).trained_tokens_per_job
    if most is None or tokens <= most:
        return None
    return (
        f"The job would train on {tokens} tokens, epochs included, and the project's limit "
        f"'trained_tokens_per_job' is {most}. Use fewer examples or epochs."
    )


async def reason_to_wait(session: AsyncSession, job: Job, settings: Settings) -> str | None:
    """Which limit keeps a queued job from being claimed, as a sentence; None if none does."""
    limits = await of(session, job.project_id, settings)
    ends = {
        Limit.GPU_SECONDS_PER_MONTH: "the job waits for the next month, or for a higher limit",
        Limit.RUNNING_JOBS: "the job waits until one of them ends",
    }
    for limit, until in ends.items():
        most = getattr(limits, limit)
        if most is not None and (taken := await used(session, job.project_id, limit) or 0) >= most:
            return f"The project's limit '{limit}' is {most}, and {taken} are used; {until}"
    return None


async def count_uploaded(session: AsyncSession, principal: Principal, size: int) -> None:
    """Of a file or a part that is taken: its bytes count for the day, whatever becomes of it."""
    session.add(
        UsageRecord(
            id=new_id("usage_"),
            project_id=principal.project_id,
            organization_id=principal.organization_id,
            day=metering.day_of(await database_now(session)),
            measure=Measure.UPLOADED_BYTES,
            amount=size,
        )
    )


async def _refusal(session: AsyncSession, limit: Limit, sentence: str) -> LimitReached | QuotaUsedUp:
    if limit is Limit.QUEUED_JOBS:
        return LimitReached(sentence)
    if limit is Limit.UPLOAD_BYTES_PER_DAY:
        now = await database_now(session)
        left = metering.day_of(now) + metering.DAY - now
        return LimitReached(f"{sentence} The day ends at midnight, UTC.", retry_after_seconds=left.total_seconds())
    return QuotaUsedUp(sentence)


def _sentence(limit: Limit, most: int, taken: int, *, asked: int | None = None) -> str:
    left = max(0, most - taken)
    more = "" if asked is None or left == 0 else f" This request needs {asked}."
    return f"The project's limit '{limit}' is {most}: {taken} are used, {left} are left.{more}"
