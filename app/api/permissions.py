"""/v1/fine_tuning/checkpoints/{model}/permissions: who else may use a model or checkpoint of the project."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header
from pydantic import Field

from app.api import access
from app.api.access import needs
from app.api.deps import MAY_BE_EMPTY, PLAIN_INTEGER, After, Caller, Opened, ReadSession, WriteSession
from app.api.times import unix
from app.auth import Principal
from app.db.models import CheckpointPermission
from app.schemas.permissions import PermissionCreate, PermissionDeleted, PermissionList, PermissionRead
from app.services import checkpoint_permissions as permissions

# The names of models may hold slashes, which the server has decoded before the path is matched.
router = APIRouter(
    prefix="/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint:path}/permissions",
    tags=["Fine-tuning"],
    dependencies=needs("models", admin_keys=True),
    responses=access.RESPONSES,
)


async def sharer(
    fine_tuned_model_checkpoint: str,
    principal: Caller,
    resources: Opened,
    openai_project: Annotated[str | None, Header(description="Of an admin key: only a model of this project.")] = None,
) -> Principal:
    """OpenAI asks for an admin key here; a key of the project that has the model does as well."""
    async with resources.read() as session:
        return await permissions.sharer(
            session, principal, model_name=fine_tuned_model_checkpoint, project_id=openai_project or None
        )


Sharer = Annotated[Principal, Depends(sharer)]


@router.get("")
async def list_fine_tuning_checkpoint_permissions(
    fine_tuned_model_checkpoint: str,
    principal: Sharer,
    session: ReadSession,
    project_id: Annotated[str | None, MAY_BE_EMPTY] = None,
    after: After = None,
    limit: Annotated[int, Field(ge=0, le=100), PLAIN_INTEGER] = 10,
    order: Annotated[Literal["ascending", "descending"], MAY_BE_EMPTY] = "descending",
) -> PermissionList:
    """List the projects that a model or checkpoint of this project is shared with."""
    page = await permissions.search(
        session,
        principal,
        model_name=fine_tuned_model_checkpoint,
        project_id=project_id,
        after=after,
        limit=limit,
        order=order,
    )
    return _list(page.rows, has_more=page.has_more)


@router.post("")
async def create_fine_tuning_checkpoint_permission(
    fine_tuned_model_checkpoint: str, body: PermissionCreate, principal: Sharer, session: WriteSession
) -> PermissionList:
    """Share a model or checkpoint with other projects of the organization. Repeating it changes nothing."""
    made = await permissions.create(
        session, principal, model_name=fine_tuned_model_checkpoint, project_ids=body.project_ids
    )
    return _list(made, has_more=False)


@router.delete("/{permission_id}")
async def delete_fine_tuning_checkpoint_permission(
    fine_tuned_model_checkpoint: str, permission_id: str, principal: Sharer, session: WriteSession
) -> PermissionDeleted:
    """Take it back, at once; jobs that have begun from it go on."""
    deleted = await permissions.delete(
        session, principal, model_name=fine_tuned_model_checkpoint, permission_id=permission_id
    )
    return PermissionDeleted(id=deleted.id)


def _list(rows: Sequence[CheckpointPermission], *, has_more: bool) -> PermissionList:
    data = [PermissionRead(id=row.id, created_at=unix(row.created_at), project_id=row.shared_with_id) for row in rows]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return PermissionList(data=data, first_id=first, last_id=last, has_more=has_more)
