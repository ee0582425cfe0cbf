"""/healthz and /readyz, for whoever runs the server; no key is needed."""

from fastapi import APIRouter

from app.api import errors
from app.api.deps import Opened
from app.db.queries import database_now
from app.schemas.common import ErrorEnvelope, Health, Readiness

router = APIRouter(tags=["System"], responses={"default": errors.RESPONSES["default"]})


@router.get("/healthz")
async def is_alive() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": ErrorEnvelope, "description": "The database is not available."}})
async def is_ready(resources: Opened) -> Readiness:
    """The process and its database answer. Without its queue it is still ready: jobs begin a second later."""
    async with resources.read() as session:
        await database_now(session)
    return Readiness(status="ok", queue="ok" if await resources.queue.problem() is None else "away")
