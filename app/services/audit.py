"""The audit log: who did what, from where. An entry is a row of the change's own transaction, so neither is without
the other; `app.api.trail` writes what is no change, such as downloads.

Ids and plain words only: no contents, no secrets, nothing else that a user wrote.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.audit_models import Action, AuditEntry, AuditHorizon
from app.db.queries import View, alone, organization_of, overseen, server_rows
from app.ids import new_id, utc_now
from app.observability import request_id
from app.origin import origin
from app.services import lookup

# The caller of the request under way, for what is recorded by functions that are not told who asks.
caller: ContextVar[Principal | None] = ContextVar("caller", default=None)
_REMOVED_AT_ONCE = 1000
_ORDER = (AuditEntry.effective_at, AuditEntry.id)


@dataclass(frozen=True)
class Filter:
    """What a list or an export is limited to; what is empty limits nothing. Times are [since, until)."""

    since: datetime | None = None
    until: datetime | None = None
    project_ids: Sequence[str] = ()
    actions: Sequence[str] = ()
    actor_ids: Sequence[str] = ()
    target_ids: Sequence[str] = ()


def record(
    session: AsyncSession,
    principal: Principal | None,
    action: Action,
    target_id: str | None,
    *,
    project_id: str | None = None,
    organization_id: str | None = None,
    **details: Any,
) -> None:
    """Note in the caller's transaction that `principal` has done this.

    None is whoever asks, or else the command line, a worker or the server itself. The entry belongs to the
    principal's project, or to that of `project_id`, or to an organization alone. Details are ids and plain words.
    """
    whose = {"project_id": project_id, "organization_id": organization_id}
    session.add(AuditEntry(**entry(principal, action, target_id, **whose, **details)))


def entry(
    principal: Principal | None,
    action: Action,
    target_id: str | None,
    *,
    project_id: str | None = None,
    organization_id: Any = None,
    outcome: str = "succeeded",
    **details: Any,
) -> dict[str, Any]:
    """The columns of an entry, as of now."""
    principal = principal or caller.get()
    whence = origin.get()
    if project_id is not None and (principal is None or principal.project_id != project_id):
        organization_id = organization_of(project_id)
    elif organization_id is None and principal is not None:
        project_id, organization_id = principal.project_id or None, principal.organization_id
    return {
        "id": new_id("audit_log-"),
        "effective_at": utc_now(),
        "organization_id": organization_id,
        "project_id": project_id,
        "action": action,
        "outcome": outcome,
        "target_id": target_id,
        "details": details or None,
        "actor_kind": "api_key" if principal else ("anonymous" if whence.kind == "api" else whence.kind),
        "actor_id": principal.key_id if principal else None,
        "source_address": whence.source_address,
        "user_agent": whence.user_agent,
        "request_id": request_id.get() if whence.kind == "api" else None,
    }


async def search(
    session: AsyncSession, view: View, *, wanted: Filter, after: str | None, before: str | None, limit: int
) -> lookup.Page[AuditEntry]:
    """Newest first: those that follow the entry `after`, or those just before the entry `before`."""
    query = _filtered(view, wanted)
    if before is None:
        return await lookup.page(session, query, cursor=AuditEntry.id, order=_ORDER, after=after, limit=limit)
    newer = await lookup.page(
        session, query, cursor=AuditEntry.id, order=_ORDER, after=before, limit=limit, ascending=True, param="before"
    )
    return lookup.Page(list(reversed(newer.rows)), has_more=newer.has_more)


async def oldest(
    session: AsyncSession, view: View, *, wanted: Filter, after: str | None, limit: int
) -> lookup.Page[AuditEntry]:
    """For exports: oldest first, behind the entry `after`."""
    query = _filtered(view, wanted)
    return await lookup.page(
        session, query, cursor=AuditEntry.id, order=_ORDER, after=after, limit=limit, ascending=True
    )


async def write(session: AsyncSession, entries: Sequence[dict[str, Any]]) -> None:
    """Entries that were made before; those that an earlier attempt has written are left as they are."""
    ids = [one["id"] for one in entries]
    known = set(
        await session.scalars(server_rows(AuditEntry).where(AuditEntry.id.in_(ids)).with_only_columns(AuditEntry.id))
    )
    session.add_all(AuditEntry(**one) for one in entries if one["id"] not in known)


async def remove_before(session: AsyncSession, horizon: datetime) -> int:
    """Remove some entries from before `horizon`, through the one door that the database leaves; returns how many.

    A horizon, which stays for ever, and an entry tell of the removal.
    """
    await alone(session, "audit horizon")
    doomed = server_rows(AuditEntry).where(AuditEntry.effective_at < horizon).limit(_REMOVED_AT_ONCE)
    rows = list(await session.scalars(doomed))
    if not rows:
        return 0
    latest = server_rows(AuditHorizon).where(AuditHorizon.horizon >= horizon)
    if await session.scalar(latest.limit(1)) is None:
        session.add(AuditHorizon(id=new_id("audit_horizon-"), horizon=horizon, created_at=utc_now()))
        record(session, None, Action.AUDIT_LOG_PRUNED, None, before=horizon.isoformat())
        await session.flush()
    for row in rows:
        await session.delete(row)
    return len(rows)


def _filtered(view: View, wanted: Filter) -> Select[AuditEntry]:
    query = overseen(AuditEntry, view)
    if wanted.since is not None:
        query = query.where(AuditEntry.effective_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(AuditEntry.effective_at < wanted.until)
    for column, values in (
        (AuditEntry.project_id, wanted.project_ids),
        (AuditEntry.action, wanted.actions),
        (AuditEntry.actor_id, wanted.actor_ids),
        (AuditEntry.target_id, wanted.target_ids),
    ):
        if values:
            query = query.where(column.in_(values))
    return query
