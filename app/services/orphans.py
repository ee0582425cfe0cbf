"""Telling objects in storage that belong to nothing: processes leave them that die between an upload and its row."""

import re

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import TERMINAL, BaseModelFile, Checkpoint, File, FineTunedModel, Job, LogSegment, UploadPart
from app.db.queries import naming
from app.services import leases

_NAMED_BY = (
    BaseModelFile.storage_key,
    File.storage_key,
    Checkpoint.adapter_key,
    Checkpoint.state_key,
    FineTunedModel.adapter_key,
    LogSegment.storage_key,
    UploadPart.storage_key,
)
_JOB_OBJECT = re.compile(r"projects/[^/]+/jobs/([^/]+)/(\d+)/")


async def needed(session: AsyncSession, candidates: set[str]) -> set[str]:
    """Those that a row names, or that a running job may be about to register."""
    job_of = {key: match for key in candidates if (match := _JOB_OBJECT.match(key))}
    job_ids = {match[1] for match in job_of.values()}
    running = await leases.fences(session, job_ids)
    needed = {key for key, match in job_of.items() if running.get(match[1]) == int(match[2])}
    queries = [naming(column, candidates) for column in _NAMED_BY]
    for part in ("training", "validation"):
        key = Job.dataset[(part, "tokens", "key")].as_string()
        queries.append(naming(key, candidates).where(Job.id.in_(job_ids)))
    initial = Job.initial_adapter["key"].as_string()
    queries.append(naming(initial, candidates).where(Job.status.not_in(TERMINAL)))
    for query in queries:
        needed.update(await session.scalars(query))
    return needed
