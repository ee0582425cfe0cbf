"""/v1/fine_tuning/jobs/{id}/logs"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from app.api import access
from app.api.access import needs
from app.api.deps import Caller, Opened
from app.auth import Principal
from app.resources import Resources
from app.schemas import examples
from app.services import logs

_POLL_SECONDS = 0.5
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
    fine_tuning_job_id: str, principal: Caller, resources: Opened, follow: bool = False
) -> StreamingResponse:
    """The job's log as plain text. With `follow=true`, the answer goes on until the job has ended."""
    news = await _news(resources, principal, fine_tuning_job_id, logs.START)  # tells of a missing job before it streams
    text = _text(resources, principal, fine_tuning_job_id, news, follow=follow)
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(text, media_type="text/plain; charset=utf-8", headers=headers)


async def _text(
    resources: Resources, principal: Principal, job_id: str, news: logs.News, *, follow: bool
) -> AsyncIterator[bytes]:
    position = logs.START
    while True:
        for segment in news.segments:
            position = (segment.fence, segment.number)
            async for chunk in resources.storage.read(segment.storage_key):
                yield chunk
        if news.is_last or not follow:
            return
        await asyncio.sleep(_POLL_SECONDS)
        news = await _news(resources, principal, job_id, position)


async def _news(resources: Resources, principal: Principal, job_id: str, position: logs.Position) -> logs.News:
    """In a session of its own, so that none is open while a client reads or a job is waited for."""
    async with resources.read() as session:
        return await logs.after(session, principal, job_id=job_id, position=position)
