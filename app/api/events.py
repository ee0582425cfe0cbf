"""/v1/fine_tuning/jobs/{id}/events: a list, or a stream of server-sent events."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from pydantic import Field

from app.api import access
from app.api.access import needs
from app.api.deps import MAY_BE_EMPTY, PLAIN_INTEGER, After, Caller, Opened, ReadSession
from app.api.streams import KeyWatch, Stream, pause
from app.api.times import unix
from app.auth import Principal
from app.db.models import Event
from app.errors import Unavailable
from app.resources import Resources
from app.schemas import examples
from app.schemas.jobs import EventList, EventRead
from app.services import event_feed, jobs
from app.services.event_feed import News

_LOOK_SECONDS = 1.0
_KEEP_ALIVE_SECONDS = 15.0
_KEY_SECONDS = 60.0
router = APIRouter(
    prefix="/v1/fine_tuning/jobs/{fine_tuning_job_id}/events",
    tags=["Fine-tuning"],
    dependencies=needs("jobs"),
    responses=access.RESPONSES,
)


@router.get(
    "",
    response_model=EventList,
    responses={
        200: {
            "description": "The events. With `stream=true`, one message each, and `[DONE]` after the job's end.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": examples.EVENT_STREAM}},
        }
    },
)
async def list_fine_tuning_events(
    fine_tuning_job_id: str,
    request: Request,
    principal: Caller,
    session: ReadSession,
    resources: Opened,
    after: After = None,
    limit: Annotated[int, Field(ge=0, le=1000), PLAIN_INTEGER] = 20,
    stream: Annotated[
        bool, MAY_BE_EMPTY, Query(description="Follow the job: oldest first, those after `after`, until its end.")
    ] = False,
    last_event_id: Annotated[
        str | None, Header(description="Where a stream goes on that was cut off; goes before `after`.")
    ] = None,
) -> EventList | Response:
    """List a job's events, newest first; or follow them as they happen."""
    if not stream:
        page = await jobs.list_events(session, principal, job_id=fine_tuning_job_id, after=after, limit=limit)
        return EventList(data=[_read(event) for event in page.rows], has_more=page.has_more)
    place = await event_feed.place_of(session, principal, job_id=fine_tuning_job_id, event_id=last_event_id or after)
    told = _told(resources, principal, fine_tuning_job_id, place, stopping=request.app.state.stopping)
    return Stream(told, among=request.app.state.streams, principal=principal, media_type="text/event-stream")


async def _told(
    resources: Resources, principal: Principal, job_id: str, place: int, *, stopping: asyncio.Event
) -> AsyncIterator[str]:
    """Ends with [DONE] after the job's end; without it when the server stops, and the client comes back elsewhere.

    Nor is there a [DONE] when the caller's key is revoked: whoever comes back is refused.
    """
    told_at = time.monotonic()
    key = KeyWatch(resources, principal, every_seconds=_KEY_SECONDS)
    while not stopping.is_set() and not await key.is_revoked():
        news = await _news(resources, principal, job_id, place)
        if news.events:
            place, told_at = news.events[-1].sequence, time.monotonic()
            yield "".join(f"id: {event.id}\ndata: {_read(event).model_dump_json()}\n\n" for event in news.events)
        if news.is_last:
            yield "data: [DONE]\n\n"
            return
        if news.events:
            continue
        if time.monotonic() - told_at >= _KEEP_ALIVE_SECONDS:
            told_at = time.monotonic()
            yield ": keep-alive\n"  # no blank line: OpenAI's client would take it for the end of an empty message
        await pause(stopping, _LOOK_SECONDS)


async def _news(resources: Resources, principal: Principal, job_id: str, place: int) -> News:
    """In a session of its own, so that none is open while a client reads or a job is waited for."""
    try:
        async with resources.read() as session:
            return await event_feed.after(session, principal, job_id=job_id, place=place)
    except Unavailable:  # the stream waits for the database
        return News((), is_last=False)


def _read(event: Event) -> EventRead:
    return EventRead(
        id=event.id,
        created_at=unix(event.created_at),
        level=event.level,  # pyright: ignore[reportArgumentType] - the column holds only these words
        type=event.type,  # pyright: ignore[reportArgumentType] - likewise
        message=event.message,
        data=event.data or {},
    )
