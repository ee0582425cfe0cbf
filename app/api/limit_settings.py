"""/v1/admin/projects/{project_id}/limits, for the operator: what a project may use."""

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncSession

from app.api import errors
from app.api.access import needs
from app.api.deps import Opened, ReadSession, WriteSession
from app.schemas.common import ErrorEnvelope
from app.schemas.limits import LimitRead, LimitsChange, LimitsRead
from app.services import projects, quotas
from app.services.quotas import Limit
from app.settings import Settings

router = APIRouter(
    prefix="/v1/admin/projects/{project_id}/limits",
    tags=["Administration"],
    dependencies=needs("server"),
    responses={**errors.RESPONSES, 403: {"model": ErrorEnvelope, "description": "Not a key of the operator."}},
)


@router.get("")
async def list_project_limits(project_id: str, session: ReadSession, resources: Opened) -> LimitsRead:
    """What a project may use, what was set for it, and what it uses now."""
    await projects.get_any(session, project_id=project_id)
    return await read(session, project_id, resources.settings)


@router.post("")
async def change_project_limits(
    project_id: str, body: LimitsChange, session: WriteSession, resources: Opened
) -> LimitsRead:
    """Set some of a project's limits, which hold at once; null takes the server's default back."""
    await projects.get_any(session, project_id=project_id)
    await quotas.change(session, project_id, body.model_dump(exclude_unset=True))
    return await read(session, project_id, resources.settings)


async def read(session: AsyncSession, project_id: str, settings: Settings) -> LimitsRead:
    usual, chosen = quotas.defaults(settings), await quotas.own(session, project_id)
    holding = await quotas.of(session, project_id, settings)
    found: dict[str, LimitRead] = {}
    for limit in Limit:
        value, taken = getattr(holding, limit), await quotas.used(session, project_id, limit)
        left = None if value is None or taken is None else max(0, value - taken)
        found[limit] = LimitRead(
            value=value, default=getattr(usual, limit), override=getattr(chosen, limit), used=taken, left=left
        )
    return LimitsRead.model_validate({"project_id": project_id, **found})
