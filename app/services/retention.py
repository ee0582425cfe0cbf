"""Which checkpoints of a job are kept, and what of them.

A checkpoint is two objects. Its adapter is what people list, download and continue from: those of the job's last
epochs are kept. Its state, twice as large, serves only to resume the job: that of the newest is kept, and of the
one before in case the newest is damaged, and none once the job has ended.
"""

import math
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import TERMINAL, Checkpoint, CheckpointPermission, Job
from app.db.queries import naming, of_job, of_project
from app.services import objects

_STATES_KEPT = 2


async def prune(session: AsyncSession, job: Job, *, epochs: int) -> None:
    """Let go of what a job does not need beside its newest checkpoint. `epochs`: what holds if the job says nothing.

    The session must hold the job row.
    """
    rows = await _newest_first(session, job)
    await _drop_states(session, rows[_STATES_KEPT:])
    epochs = (job.extension or {}).get("keep_checkpoint_epochs") or epochs
    candidates = [row for row in rows[_STATES_KEPT:] if _epoch(job, row) <= _epoch(job, rows[0]) - epochs]
    if not candidates:
        return
    await _lock(session, job, candidates)
    in_use = await _in_use(session, candidates)
    shared = await _shared(session, job, candidates)
    for row in candidates:
        if row.adapter_key not in in_use and row.model_name not in shared:
            await session.delete(row)
            await objects.let_go(session, storage_key=row.adapter_key)


async def drop_states(session: AsyncSession, job: Job) -> None:
    """When a job has ended: it will not be resumed."""
    await _drop_states(session, await _newest_first(session, job))


async def _newest_first(session: AsyncSession, job: Job) -> Sequence[Checkpoint]:
    return list(await session.scalars(of_job(Checkpoint, job.id).order_by(Checkpoint.step.desc())))


async def _drop_states(session: AsyncSession, rows: Sequence[Checkpoint]) -> None:
    for row in rows:
        key, row.state_key, row.state_sha256, row.state_bytes = row.state_key, None, None, None
        if key is not None:
            await objects.let_go(session, storage_key=key)


async def _lock(session: AsyncSession, job: Job, rows: Sequence[Checkpoint]) -> None:
    """Whoever begins to use or to share one of them has done so, and is seen from here on, or finds it gone."""
    query = of_job(Checkpoint, job.id).where(Checkpoint.id.in_([row.id for row in rows])).order_by(Checkpoint.step)
    await session.execute(query.with_for_update())


async def _in_use(session: AsyncSession, rows: Sequence[Checkpoint]) -> set[str]:
    """The adapters that jobs under way continue from, whosever they are."""
    initial = Job.initial_adapter["key"].as_string()
    query = naming(initial, [row.adapter_key for row in rows]).where(Job.status.not_in(TERMINAL))
    return set(await session.scalars(query))


async def _shared(session: AsyncSession, job: Job, rows: Sequence[Checkpoint]) -> set[str]:
    """The checkpoints that other projects were told they may use."""
    mine = of_project(CheckpointPermission, job.project_id)
    query = mine.where(CheckpointPermission.model_name.in_([row.model_name for row in rows]))
    return {row.model_name for row in await session.scalars(query)}


def _epoch(job: Job, row: Checkpoint) -> int:
    """1-based; all epochs of a run have as many steps."""
    if job.spec is None or job.total_steps is None:
        return 1
    return math.ceil(row.step * job.spec["n_epochs"] / job.total_steps)
