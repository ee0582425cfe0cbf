"""/v1/organization/audit_logs: who did what, as a list or as one stream of JSON lines."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from app.api import access
from app.api.access import needs
from app.api.deps import PLAIN_INTEGER, After, Caller, Opened, ReadSession
from app.api.times import MAX_UNIX, UNIX_TIME, unix
from app.api.trail import Trail
from app.db.audit_models import Action, AuditEntry
from app.db.queries import View
from app.resources import Resources
from app.schemas import admin_examples
from app.schemas.audit_logs import Actor, ActorApiKey, AuditDetails, AuditLogList, AuditLogRead, AuditProject
from app.services import audit, oversight
from worker.contract.text import Text

router = APIRouter(
    prefix="/v1/organization/audit_logs",
    tags=["Audit"],
    dependencies=needs("admin", admin_keys=True),
    responses=access.RESPONSES,
)

_EXPORTED_AT_ONCE = 500
Ids = Annotated[list[Annotated[Text, Field(max_length=256)]], Field(max_length=100)]
Moment = Annotated[int | None, Field(ge=0, le=MAX_UNIX), UNIX_TIME]


def _wanted(
    gt: Annotated[Moment, Query(alias="effective_at[gt]")] = None,
    gte: Annotated[Moment, Query(alias="effective_at[gte]")] = None,
    lt: Annotated[Moment, Query(alias="effective_at[lt]")] = None,
    lte: Annotated[Moment, Query(alias="effective_at[lte]")] = None,
    project_ids: Annotated[Ids, Query(alias="project_ids[]")] = [],  # noqa: B006
    event_types: Annotated[Ids, Query(alias="event_types[]")] = [],  # noqa: B006
    actor_ids: Annotated[Ids, Query(alias="actor_ids[]", description="Ids of API keys.")] = [],  # noqa: B006
    resource_ids: Annotated[Ids, Query(alias="resource_ids[]", description="What it was done to.")] = [],  # noqa: B006
) -> audit.Filter:
    # Entries are told in whole seconds, so that is what they are compared by.
    starts = [one for one in (gte, None if gt is None else gt + 1) if one is not None]
    ends = [one for one in (lt, None if lte is None else lte + 1) if one is not None]
    return audit.Filter(
        since=datetime.fromtimestamp(max(starts), UTC) if starts else None,
        until=datetime.fromtimestamp(min(ends), UTC) if ends else None,
        project_ids=project_ids,
        actions=event_types,
        actor_ids=actor_ids,
        target_ids=resource_ids,
    )


Wanted = Annotated[audit.Filter, Depends(_wanted)]


@router.get("")
async def list_audit_logs(
    wanted: Wanted,
    principal: Caller,
    session: ReadSession,
    after: After = None,
    before: Annotated[str | None, Query(description="The id of the first item of the page behind.")] = None,
    limit: Annotated[int, Field(ge=0, le=100), PLAIN_INTEGER] = 20,
) -> AuditLogList:
    """List what was done, newest first. A project's key sees its project; the operator sees everything."""
    view = await oversight.view_of(session, principal)
    page = await audit.search(session, view, wanted=wanted, after=after, before=before, limit=limit)
    data = [_read(row) for row in page.rows]
    first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
    return AuditLogList(data=data, first_id=first_id, last_id=last_id, has_more=page.has_more)


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "One entry a line, oldest first.",
            "content": {"application/jsonl": {"schema": {"type": "string"}, "example": admin_examples.AUDIT_EXPORT}},
        }
    },
)
async def export_audit_logs(
    wanted: Wanted, request: Request, principal: Caller, resources: Opened
) -> StreamingResponse:
    """All entries that the list would show, as JSON lines. An extension of Hone's."""
    async with resources.read() as session:
        view = await oversight.view_of(session, principal)
    trail: Trail = request.app.state.trail
    trail.note(principal, Action.AUDIT_LOG_EXPORTED, None)
    lines = exported(resources, view, wanted)
    start = await anext(lines, "")  # before the status leaves: a database that is away must not be a 200
    return StreamingResponse(_joined(start, lines), media_type="application/jsonl")


async def exported(resources: Resources, view: View, wanted: audit.Filter) -> AsyncIterator[str]:
    """Pieces of some hundred lines; no session is open while one is sent."""
    last, has_more = None, True
    while has_more:
        async with resources.read() as session:
            page = await audit.oldest(session, view, wanted=wanted, after=last, limit=_EXPORTED_AT_ONCE)
        has_more = page.has_more
        if page.rows:
            last = page.rows[-1].id
            yield "".join(_read(row).model_dump_json() + "\n" for row in page.rows)


async def _joined(start: str, lines: AsyncIterator[str]) -> AsyncIterator[str]:
    yield start
    async for piece in lines:
        yield piece


def _read(row: AuditEntry) -> AuditLogRead:
    return AuditLogRead(
        id=row.id,
        type=row.action,
        effective_at=unix(row.effective_at),
        actor=Actor(api_key=ActorApiKey(id=row.actor_id)) if row.actor_id else None,
        project=AuditProject(id=row.project_id) if row.project_id else None,
        hone=AuditDetails.model_validate(
            {
                "actor": row.actor_kind,
                "outcome": row.outcome,
                "target_id": row.target_id,
                "organization_id": row.organization_id,
                "source_address": row.source_address,
                "user_agent": row.user_agent,
                "request_id": row.request_id,
            }
        ),
        **{str(row.action): {**({"id": row.target_id} if row.target_id else {}), **(row.details or {})}},
    )
