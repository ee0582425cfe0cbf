"""Adapters by the names that clients know: those of fine-tuned models and of checkpoints."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.models import Checkpoint, FineTunedModel, Job, Project
from app.db.queries import of_project, readable_checkpoints, readable_models, server_rows
from app.services import lookup


@dataclass(frozen=True)
class Adapter:
    """Where an adapter's archive lies, and the settings it was made with (LoraSettings)."""

    model: str
    project_id: str
    base_model_id: str
    key: str
    sha256: str
    bytes: int
    lora: dict[str, Any]

    def remembered(self) -> dict[str, Any]:
        """What a job that continues from it keeps, so that the model's deletion does it no harm."""
        return {"model": self.model, "key": self.key, "sha256": self.sha256, "lora": self.lora}


async def find(session: AsyncSession, principal: Principal, *, name: str, lock: bool = False) -> Adapter | None:
    """The adapter of a model or checkpoint that the project has, or that another shares with it.

    `lock` keeps it from being deleted meanwhile.
    """
    models, checkpoints = readable_models(principal), readable_checkpoints(principal)
    if lock:
        models, checkpoints = models.with_for_update(), checkpoints.with_for_update()
    model = await lookup.find(session, models, FineTunedModel.id, name)
    if model is not None:
        made_by = await _job(session, model.project_id, model.job_id) if model.job_id is not None else None
        return _of(name, model.base_model_id, model, made_by.spec if made_by else {"lora": model.lora})
    checkpoint = await lookup.find(session, checkpoints, Checkpoint.model_name, name)
    if checkpoint is None:
        return None
    job = await _job(session, checkpoint.project_id, checkpoint.job_id)
    if job.fine_tuned_model == name:  # the last checkpoint bears the name of the model, which was deleted
        return None
    return _of(name, job.base_model_id, checkpoint, job.spec)


async def find_in_any_project(session: AsyncSession, *, name: str) -> Adapter | None:
    """For the operator, who is of no project: the adapter of a model or checkpoint, whosever it is."""
    for project in list(await session.scalars(server_rows(Project))):
        principal = Principal(key_id="", project_id=project.id, organization_id=project.organization_id)
        if (found := await find(session, principal, name=name)) is not None:
            return found
    return None


async def _job(session: AsyncSession, project_id: str, job_id: str) -> Job:
    return (await session.execute(of_project(Job, project_id).where(Job.id == job_id))).scalar_one()


def _of(name: str, base_model_id: str, row: FineTunedModel | Checkpoint, spec: dict[str, Any] | None) -> Adapter:
    assert spec is not None  # a job without one has not begun, and has neither model nor checkpoint
    return Adapter(
        name, row.project_id, base_model_id, row.adapter_key, row.adapter_sha256, row.adapter_bytes, spec["lora"]
    )
