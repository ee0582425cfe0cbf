"""/v1/models"""

from fastapi import APIRouter

from app.api import errors
from app.api.deps import AUTHENTICATED, Caller, ReadSession, WriteSession
from app.api.times import unix
from app.auth import Principal
from app.db.models import BaseModel, FineTunedModel
from app.schemas.models import ModelDeleted, ModelList, ModelRead
from app.services import models

router = APIRouter(prefix="/v1/models", tags=["Models"], dependencies=AUTHENTICATED, responses=errors.RESPONSES)


@router.get("")
async def list_models(principal: Caller, session: ReadSession) -> ModelList:
    """List the server's base models and the project's fine-tuned models."""
    return ModelList(data=[_read(principal, model) for model in await models.search(session, principal)])


# The names of models may hold slashes, which the server has decoded before the path is matched.
@router.get("/{model:path}")
async def retrieve_model(model: str, principal: Caller, session: ReadSession) -> ModelRead:
    return _read(principal, await models.get(session, principal, model_id=model))


@router.delete("/{model:path}")
async def delete_model(model: str, principal: Caller, session: WriteSession) -> ModelDeleted:
    """Delete a fine-tuned model."""
    return ModelDeleted(id=(await models.delete(session, principal, model_id=model)).id)


def _read(principal: Principal, model: BaseModel | FineTunedModel) -> ModelRead:
    owner = "system" if isinstance(model, BaseModel) else principal.organization_id
    return ModelRead(id=model.id, created=unix(model.created_at), owned_by=owner)
