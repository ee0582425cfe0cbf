"""The worker processes of this installation: what each says of itself, and being asked to leave.

A worker writes its own row, at each renewal of its leases and whenever something changed. Nothing is decided by
these rows but what people see: jobs are given out, and taken back, by their leases alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.audit_models import Action
from app.db.models import Worker, WorkerState
from app.db.queries import database_now, server_rows
from app.errors import NotFound
from app.services import audit, leases, lookup

TRAIN, CPU, PYTHON_GRADERS = "train", "cpu", "python_graders"
_REMEMBERED = timedelta(days=1)


@dataclass(frozen=True)
class Description:
    """What a worker says of itself; the columns of `Worker` that do not come from the database's clock."""

    id: str
    hostname: str
    pid: int
    version: str
    pool: str
    kinds: list[str]
    state: WorkerState
    slots: list[dict[str, Any]]
    unavailable_bases: dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """A worker as others see it: `jobs` maps the names of its slots to the jobs that they hold a lease on."""

    row: Worker
    is_dead: bool
    jobs: Mapping[str, str]


async def report(session: AsyncSession, description: Description) -> bool:
    """Write the worker's row, with a fresh heartbeat. Returns whether it has been asked to drain."""
    now = await database_now(session)
    row = await _find(session, description.id)
    if row is None:  # it is new, or was silent for so long that its row was removed
        row = Worker(id=description.id, started_at=now)
        session.add(row)
    for name, value in vars(description).items():
        setattr(row, name, value)
    row.heartbeat_at = now
    return row.drain_requested_at is not None


async def is_asked_to_drain(session: AsyncSession, worker_id: str) -> bool:
    row = await _find(session, worker_id)
    return row is not None and row.drain_requested_at is not None


async def leave(session: AsyncSession, worker_id: str) -> None:
    """A worker that ends as planned is forgotten at once."""
    row = await _find(session, worker_id)
    if row is not None:
        await session.delete(row)


async def search(session: AsyncSession, *, silent_seconds: float) -> list[Seen]:
    """All workers, oldest first. A worker is dead when its last heartbeat is older than `silent_seconds`."""
    rows = list(await session.scalars(server_rows(Worker).order_by(Worker.started_at, Worker.id)))
    return await _seen(session, rows, silent_seconds)


async def drain(session: AsyncSession, *, worker_id: str, silent_seconds: float) -> Seen:
    """Ask a worker to hand back its jobs and end. Raises NotFound."""
    row = await lookup.find(session, server_rows(Worker), Worker.id, worker_id)
    if row is None:
        raise NotFound(f"There is no worker '{lookup.shown(worker_id)}'.", code="worker_not_found")
    if row.drain_requested_at is None:
        row.drain_requested_at = await database_now(session)
        audit.record(session, None, Action.WORKER_DRAINED, row.id)
    await session.flush()
    (seen,) = await _seen(session, [row], silent_seconds)
    return seen


async def living(session: AsyncSession, kind: str, *, pool: str | None, silent_seconds: float) -> list[Worker]:
    """The workers that take jobs: of that kind, and of that pool if one is named."""
    since = await database_now(session) - timedelta(seconds=silent_seconds)
    query = server_rows(Worker).where(Worker.heartbeat_at >= since)
    if pool is not None:
        query = query.where(Worker.pool == pool)
    return [worker for worker in await session.scalars(query) if kind in worker.kinds]


async def remove_long_dead(session: AsyncSession) -> None:
    gone = server_rows(Worker).where(Worker.heartbeat_at < await database_now(session) - _REMEMBERED)
    for row in await session.scalars(gone):
        await session.delete(row)


async def _find(session: AsyncSession, worker_id: str) -> Worker | None:
    return await session.scalar(server_rows(Worker).where(Worker.id == worker_id))


async def _seen(session: AsyncSession, rows: Sequence[Worker], silent_seconds: float) -> list[Seen]:
    since: datetime = await database_now(session) - timedelta(seconds=silent_seconds)
    held = await leases.jobs_by_owner(session)
    return [
        Seen(
            row,
            is_dead=row.heartbeat_at < since,
            jobs={owner: job for owner, job in held.items() if owner.startswith(f"{row.id}/")},
        )
        for row in rows
    ]
