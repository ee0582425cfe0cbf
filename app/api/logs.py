"""/v1/fine_tuning/jobs/{id}/logs"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from app.api import access, streams
from app.api.access import needs
from app.api.deps import MAY_BE_EMPTY, Caller, Opened
from app.api.streams import KeyWatch, Stream, pause
from app.auth import Principal
from app.errors import Unavailable
from app.resources import Resources
from app.schemas import examples
from app.services import logs

_POLL_SECONDS = 0.5
_KEY_SECONDS = 60.0
_KIND = "text/plain; charset=utf-8"
router = APIRouter(
    prefix="/v1/fine_tuning/jobs/{fine_tuning_job_id}/logs",
    tags=["Fine-tuning"],
    dependencies=needs("jobs"),
    responses=access.RESPONSES,
)


@router.get(
    "",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The log so far.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": examples.LOG}},
        }
    },
)
async def read_log(
    fine_tuning_job_id: str,
    request: Request,
    principal: Caller,
    resources: Opened,
    follow: Annotated[bool, MAY_BE_EMPTY, Query(description="Go on until the job has ended.")] = False,
) -> StreamingResponse:
    """The job's log as plain text. With `follow=true`, the answer goes on until the job has ended, or the server
    stops."""
    news = await _news(resources, principal, fine_tuning_job_id, logs.START)  # tells of a missing job before it streams
    state = request.app.state
    text = _text(resources, principal, fine_tuning_job_id, news, follow_until=state.stopping if follow else None)
    if not follow:
        return StreamingResponse(text, media_type=_KIND, headers=streams.HEADERS)
    return Stream(text, among=state.streams, principal=principal, media_type=_KIND)


async def _text(
    resources: Resources, principal: Principal, job_id: str, news: logs.News, *, follow_until: asyncio.Event | None
) -> AsyncIterator[bytes]:
    """Ends with the log so far, or follows it until the job's end or that of the server or of the key."""
    position = logs.START
    key = KeyWatch(resources, principal, every_seconds=_KEY_SECONDS)
    while True:
        for segment in news.segments:
            position = (segment.fence, segment.number)
            async for chunk in resources.storage.read(segment.storage_key):
                yield chunk
        if news.is_last or follow_until is None:
            return
        await pause(follow_until, _POLL_SECONDS)
        if follow_until.is_set() or await key.is_revoked():
            return
        try:
            news = await _news(resources, principal, job_id, position)
        except Unavailable:  # the stream waits for the database
            news = logs.News((), is_last=False)


async def _news(resources: Resources, principal: Principal, job_id: str, position: logs.Position) -> logs.News:
    """In a session of its own, so that none is open while a client reads or a job is waited for."""
    async with resources.read() as session:
        return await logs.after(session, principal, job_id=job_id, position=position)
