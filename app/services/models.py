"""Models that a project may name: the server's base models and what its own jobs have made."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.models import BaseModel, FineTunedModel, Organization
from app.db.queries import scoped, server_rows
from app.errors import Forbidden, NotFound
from app.ids import random_text, utc_now
from app.services import adapters, jobs, keys, lookup, objects
from app.services.adapters import Adapter
from app.storage.base import StoredObject
from worker.contract.spec import LoraSettings


async def search(session: AsyncSession, principal: Principal) -> Sequence[BaseModel | FineTunedModel]:
    """Base models by name, then the project's own, newest first."""
    bases = await session.scalars(server_rows(BaseModel).order_by(BaseModel.id))
    newest_first = (FineTunedModel.created_at.desc(), FineTunedModel.id.desc())
    own = await session.scalars(scoped(FineTunedModel, principal).order_by(*newest_first))
    return [*bases, *own]


async def get(
    session: AsyncSession, principal: Principal, *, model_id: str, lock: bool = False
) -> BaseModel | FineTunedModel:
    """`lock` holds the row of a project's own model until the end of the transaction."""
    query = scoped(FineTunedModel, principal)
    own = await lookup.find(session, query.with_for_update() if lock else query, FineTunedModel.id, model_id)
    found = own or await lookup.find(session, server_rows(BaseModel), BaseModel.id, model_id)
    if found is None:
        raise NotFound(_missing(model_id), param="model", code="model_not_found")
    return found


async def delete(session: AsyncSession, principal: Principal, *, model_id: str) -> FineTunedModel:
    """The adapter's archive goes too, unless a result file or a checkpoint still refers to it."""
    model = await get(session, principal, model_id=model_id, lock=True)
    if isinstance(model, BaseModel):
        raise Forbidden(f"The model '{model.id}' is a base model of this server; only its operator can remove it.")
    await session.delete(model)
    await objects.let_go(session, project_id=principal.project_id, storage_key=model.adapter_key)
    return model


async def add_imported(
    session: AsyncSession, *, base: BaseModel, name: str, stored: StoredObject, lora: LoraSettings
) -> FineTunedModel:
    """A model of the default project whose adapter was made elsewhere."""
    project = await keys.default_project(session)
    query = server_rows(Organization).where(Organization.id == project.organization_id)
    organization = (await session.execute(query)).scalar_one()
    model = FineTunedModel(
        id=f"ft:{base.id}:{organization.name}:{name}:{random_text(8)}",
        project_id=project.id,
        job_id=None,
        base_model_id=base.id,
        lora=lora.model_dump(mode="json"),
        adapter_key=stored.key,
        adapter_sha256=stored.sha256,
        adapter_bytes=stored.bytes,
        created_at=utc_now(),
    )
    session.add(model)
    await session.flush()
    return model


async def adapter(session: AsyncSession, principal: Principal, *, model_id: str) -> Adapter:
    """The adapter of a fine-tuned model, or of the checkpoint of that name."""
    found = await adapters.find(session, principal, name=model_id)
    if found is None:
        model = await get(session, principal, model_id=model_id)
        raise NotFound(f"The model '{model.id}' is a base model; it has no adapter.", code="adapter_not_found")
    return found


async def of_job(session: AsyncSession, principal: Principal, *, job_id: str) -> FineTunedModel:
    """The model that a job made."""
    job = await jobs.get(session, principal, job_id=job_id)
    model = await session.scalar(scoped(FineTunedModel, principal).where(FineTunedModel.job_id == job.id))
    if model is None:
        if job.fine_tuned_model is not None:
            raise NotFound(_missing(job.fine_tuned_model), param="model", code="model_not_found")
        raise NotFound(f"Job {job.id} has made no model: its status is {job.status}.", code="adapter_not_found")
    return model


def _missing(model_id: str) -> str:
    return f"The model '{lookup.shown(model_id)}' does not exist"
