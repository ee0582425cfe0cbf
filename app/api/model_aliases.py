"""/v1/admin/model_aliases, for the operator: other names of base models."""

from fastapi import APIRouter

from app.api import errors
from app.api.access import needs
from app.api.deps import ReadSession, WriteSession
from app.api.times import unix
from app.db.models import ModelAlias
from app.schemas.admin import ModelAliasCreate, ModelAliasDeleted, ModelAliasList, ModelAliasRead
from app.schemas.common import ErrorEnvelope
from app.services import model_aliases

router = APIRouter(
    prefix="/v1/admin/model_aliases",
    tags=["Administration"],
    dependencies=needs("server"),
    responses={**errors.RESPONSES, 403: {"model": ErrorEnvelope, "description": "Not a key of the operator."}},
)


@router.get("")
async def list_model_aliases(session: ReadSession) -> ModelAliasList:
    """List the aliases by name."""
    return ModelAliasList(data=[_read(alias) for alias in await model_aliases.search(session)])


@router.post("")
async def create_model_alias(body: ModelAliasCreate, session: WriteSession) -> ModelAliasRead:
    """Let a base model be named otherwise too; a name that stands for another is moved to this one."""
    return _read(await model_aliases.put(session, name=body.id, base_id=body.base_model))


@router.delete("/{alias:path}")
async def delete_model_alias(alias: str, session: WriteSession) -> ModelAliasDeleted:
    """Remove an alias. Jobs that were created by it are not affected."""
    return ModelAliasDeleted(id=(await model_aliases.remove(session, name=alias)).id)


def _read(alias: ModelAlias) -> ModelAliasRead:
    return ModelAliasRead(id=alias.id, base_model=alias.base_model_id, created_at=unix(alias.created_at))
