"""Python graders on their way through a worker: a request leaves a row, a worker answers it under a lease.

A worker that dies lets its lease run out, and another one takes the run, once. A request that dies leaves a row
that is removed when its time is over. So nothing here needs to be recovered.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.auth import Principal
from app.db import after_commit
from app.db.models import GraderRun
from app.db.queries import database_now, scoped
from app.errors import ApiError
from app.ids import new_id
from app.queue.base import VALIDATION_POOL

MOST_OF_A_PROJECT = 32
_MOST_ATTEMPTS = 2


class TooManyRuns(ApiError):
    status = 429
    type = "rate_limit_error"


@dataclass(frozen=True)
class Claim:
    run_id: str
    owner: str
    attempt: int
    request: dict[str, Any]


async def add(session: AsyncSession, principal: Principal, *, request: dict[str, Any], lives_seconds: float) -> str:
    """Leave a run for the workers; returns its id. Raises TooManyRuns."""
    now = await database_now(session)
    unanswered = scoped(GraderRun, principal).where(GraderRun.expires_at > now, GraderRun.result.is_(None))
    if (await session.scalar(unanswered.with_only_columns(func.count())) or 0) >= MOST_OF_A_PROJECT:
        message = f"This project has {MOST_OF_A_PROJECT} Python graders running. Try again in a moment."
        raise TooManyRuns(message, code="too_many_graders", headers={"Retry-After": "2"})
    run = GraderRun(
        id=new_id("graderrun-"),
        project_id=principal.project_id,
        request=request,
        created_at=now,
        expires_at=now + timedelta(seconds=lives_seconds),
    )
    session.add(run)
    after_commit.wake(session, VALIDATION_POOL)
    return run.id


async def result(session: AsyncSession, principal: Principal, *, run_id: str) -> dict[str, Any] | None:
    """What a worker answered, or None so far."""
    run = await session.scalar(scoped(GraderRun, principal).where(GraderRun.id == run_id))
    return run.result if run is not None else None


async def remove(session: AsyncSession, principal: Principal, *, run_id: str) -> None:
    run = await session.scalar(scoped(GraderRun, principal).where(GraderRun.id == run_id))
    if run is not None:
        await session.delete(run)


async def claim(session: AsyncSession, *, owner: str, ttl_seconds: float) -> Claim | None:
    """Take the next run: of the project that has the fewest in hand, the oldest. Two workers never take the same."""
    now = await database_now(session)
    other = aliased(GraderRun)
    in_hand = (
        select(func.count())
        .where(other.project_id == GraderRun.project_id, other.result.is_(None), other.lease_expires_at >= now)
        .scalar_subquery()
    )
    following = (
        select(GraderRun.id)
        .where(
            GraderRun.result.is_(None),
            GraderRun.expires_at > now,
            GraderRun.attempts < _MOST_ATTEMPTS,
            or_(GraderRun.lease_expires_at.is_(None), GraderRun.lease_expires_at < now),
        )
        .order_by(in_hand, GraderRun.created_at, GraderRun.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=GraderRun)
    )
    claimed = await session.scalar(
        update(GraderRun)
        .where(GraderRun.id == following.scalar_subquery())
        .values(
            lease_owner=owner,
            lease_expires_at=now + timedelta(seconds=ttl_seconds),
            attempts=GraderRun.attempts + 1,
        )
        .returning(GraderRun.id)
    )
    if claimed is None:
        return None
    run = await session.get_one(GraderRun, claimed, populate_existing=True)
    return Claim(run.id, owner, run.attempts, run.request)


async def renew(session: AsyncSession, held: Claim, *, ttl_seconds: float) -> bool:
    """Push the lease's end; whether it is still held, and somebody still waits."""
    now = await database_now(session)
    expiry = now + timedelta(seconds=ttl_seconds)
    kept = await session.scalar(
        update(GraderRun)
        .where(_is(held), GraderRun.expires_at > now)
        .values(lease_expires_at=expiry)
        .returning(GraderRun.id)
    )
    return kept is not None


async def answer(session: AsyncSession, held: Claim, *, result: dict[str, Any]) -> None:
    """Changes nothing when the run has gone to somebody else, or nobody waits for it."""
    await session.execute(update(GraderRun).where(_is(held)).values(result=result))


async def give_back(session: AsyncSession, held: Claim) -> None:
    """A worker that leaves gives its run to others, and the attempt is not counted."""
    values = {"lease_owner": None, "lease_expires_at": None, "attempts": GraderRun.attempts - 1}
    if await session.scalar(update(GraderRun).where(_is(held)).values(values).returning(GraderRun.id)):
        after_commit.wake(session, VALIDATION_POOL)


async def remove_expired(session: AsyncSession) -> None:
    now = await database_now(session)
    for run in await session.scalars(select(GraderRun).where(GraderRun.expires_at < now).limit(1000)):
        await session.delete(run)


def _is(held: Claim) -> ColumnElement[bool]:
    return (
        (GraderRun.id == held.run_id)
        & (GraderRun.lease_owner == held.owner)
        & (GraderRun.attempts == held.attempt)
        & GraderRun.result.is_(None)
    )
