"""/v1/admin/projects/{project_id}/limits, for the operator: what a project may use."""

from fastapi import APIRouter

from app.api import errors
from app.api.access import needs
from app.api.deps import Opened, ReadSession, WriteSession
from app.schemas.common import ErrorEnvelope
from app.schemas.limits import LimitsChange, LimitsRead
from app.services import projects, quotas

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
    return await quotas.report(session, project_id, resources.settings)


@router.post("")
async def change_project_limits(
    project_id: str, body: LimitsChange, session: WriteSession, resources: Opened
) -> LimitsRead:
    """Set some of a project's limits, which hold at once; null takes the server's default back."""
    await projects.get_any(session, project_id=project_id)
    await quotas.change(session, project_id, body.model_dump(exclude_unset=True))
    return await quotas.report(session, project_id, resources.settings)
