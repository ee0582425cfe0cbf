"""Models that a project may name: the server's, by any of their names, its own, and those that are shared with it."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.audit_models import Action
from app.db.models import BaseModel, FineTunedModel, ModelAlias, Organization
from app.db.queries import readable_models, scoped, server_rows
from app.errors import Forbidden, NotFound
from app.ids import random_text, utc_now
from app.services import (
    adapters,
    audit,
    base_models,
    checkpoint_permissions,
    jobs,
    keys,
    lookup,
    model_aliases,
    objects,
)
from app.services.adapters import Adapter
from app.storage.base import StoredObject
from worker.contract.spec import LoraSettings

Model = BaseModel | ModelAlias | FineTunedModel


async def search(session: AsyncSession, principal: Principal) -> Sequence[Model]:
    """Base models and then aliases by name, then the models that the project may read, newest first."""
    newest_first = (FineTunedModel.created_at.desc(), FineTunedModel.id.desc())
    fine_tuned = await session.scalars(readable_models(principal).order_by(*newest_first))
    return [*await base_models.search(session), *await model_aliases.search(session), *fine_tuned]


async def get(session: AsyncSession, principal: Principal, *, model_id: str, lock: bool = False) -> Model:
    """`lock` holds the row of a fine-tuned model until the end of the transaction."""
    query = readable_models(principal)
    found = (
        await lookup.find(session, query.with_for_update() if lock else query, FineTunedModel.id, model_id)
        or await base_models.find(session, model_id)
        or await model_aliases.find(session, model_id)
    )
    if found is None:
        raise NotFound(_missing(model_id), param="model", code="model_not_found")
    return found


async def delete(session: AsyncSession, principal: Principal, *, model_id: str) -> FineTunedModel:
    """For all projects that it is shared with, too.

    The adapter's archive goes with it, unless a result file or a checkpoint still refers to it; where a job continues
    from it, when that job has ended.
    """
    model = await get(session, principal, model_id=model_id, lock=True)
    if not isinstance(model, FineTunedModel):
        kind = "a base model" if isinstance(model, BaseModel) else "an alias of a base model"
        raise Forbidden(f"The model '{model.id}' is {kind} of this server; only its operator can remove it.")
    if model.project_id != principal.project_id:
        raise Forbidden(f"The model '{model.id}' is shared by another project; only that one can delete it.")
    await checkpoint_permissions.forget(session, principal, model_name=model.id)
    await session.delete(model)
    await objects.let_go(session, storage_key=model.adapter_key)
    audit.record(session, principal, Action.MODEL_DELETED, model.id)
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
    audit.record(session, None, Action.MODEL_CREATED, model.id, project_id=project.id, reason="imported")
    await session.flush()
    return model


async def adapter(session: AsyncSession, principal: Principal, *, model_id: str) -> Adapter:
    """The adapter of a fine-tuned model, or of the checkpoint of that name."""
    found = await adapters.find(session, principal, name=model_id)
    if found is None:
        model = await get(session, principal, model_id=model_id)
        raise NotFound(f"The model '{model.id}' stands for a base model; it has no adapter.", code="adapter_not_found")
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
