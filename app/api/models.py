"""/v1/models"""

import re

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from app.api import access, downloads
from app.api.access import needs
from app.api.deps import Caller, Opened, ReadSession, WriteSession
from app.api.times import unix
from app.auth import Principal
from app.db.audit_models import Action
from app.db.models import BaseModel, ModelAlias
from app.schemas.models import ModelDeleted, ModelDetails, ModelList, ModelRead
from app.services import models
from app.storage.base import StoredObject

router = APIRouter(prefix="/v1/models", tags=["Models"], dependencies=needs("models"), responses=access.RESPONSES)


@router.get("")
async def list_models(principal: Caller, session: ReadSession) -> ModelList:
    """List the server's base models and their aliases, the project's models, and those that are shared with it."""
    return ModelList(data=[_read(principal, model) for model in await models.search(session, principal)])


# Before the next one, which would take the end of the path for a part of the name.
@router.head("/{model:path}/adapter", include_in_schema=False)
@router.get("/{model:path}/adapter", response_class=StreamingResponse, responses={**downloads.RESPONSES})
async def download_model_adapter(model: str, request: Request, principal: Caller, resources: Opened) -> Response:
    """The adapter of a fine-tuned model or a checkpoint, as a zip archive of a standard PEFT directory."""
    async with resources.read() as session:
        found = await models.adapter(session, principal, model_id=model)
    stored = StoredObject(found.key, found.bytes, found.sha256)
    filename = f"{_filename(found.model)}-adapter.zip"
    download = downloads.Download(stored, filename, Action.ADAPTER_DOWNLOADED, found.model)
    return await downloads.respond(request, principal, resources.storage, download)


# The names of models may hold slashes, which the server has decoded before the path is matched.
@router.get("/{model:path}")
async def retrieve_model(model: str, principal: Caller, session: ReadSession) -> ModelRead:
    return _read(principal, await models.get(session, principal, model_id=model))


@router.delete("/{model:path}")
async def delete_model(model: str, principal: Caller, session: WriteSession) -> ModelDeleted:
    """Delete a fine-tuned model, also for those it is shared with. Jobs that continue from it go on."""
    return ModelDeleted(id=(await models.delete(session, principal, model_id=model)).id)


def _filename(model: str) -> str:
    """A model's name without the characters that some file systems do not take."""
    return re.sub(r"[^A-Za-z0-9_.\-]+", "-", model)


def _read(principal: Principal, model: models.Model) -> ModelRead:
    owner, base = "system", model.id
    if isinstance(model, BaseModel):
        kind = "base"
    elif isinstance(model, ModelAlias):
        kind, base = "alias", model.base_model_id
    else:  # what is shared is shared within the organization
        kind = "fine_tuned" if model.project_id == principal.project_id else "shared"
        owner, base = principal.organization_id, model.base_model_id
    details = ModelDetails(kind=kind, base_model=base)
    return ModelRead(id=model.id, created=unix(model.created_at), owned_by=owner, hone=details)
