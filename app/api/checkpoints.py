"""/v1/fine_tuning/jobs/{id}/checkpoints, and the adapters of jobs and checkpoints."""

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from app.api import access, downloads
from app.api.access import needs
from app.api.deps import PLAIN_INTEGER, After, Caller, Opened, ReadSession
from app.api.times import unix
from app.db.audit_models import Action
from app.db.models import Checkpoint
from app.schemas.jobs import CheckpointList, CheckpointMetrics, CheckpointRead
from app.services import checkpoints, models
from app.storage.base import StoredObject

router = APIRouter(
    prefix="/v1/fine_tuning/jobs/{fine_tuning_job_id}",
    tags=["Fine-tuning"],
    responses=access.RESPONSES,
)


@router.get("/checkpoints", dependencies=needs("jobs"))
async def list_fine_tuning_checkpoints(
    fine_tuning_job_id: str,
    principal: Caller,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Field(ge=0, le=100), PLAIN_INTEGER] = 10,
) -> CheckpointList:
    """List a job's checkpoints, newest first."""
    page = await checkpoints.search(session, principal, job_id=fine_tuning_job_id, after=after, limit=limit)
    data = [_read(checkpoint) for checkpoint in page.rows]
    return CheckpointList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


@router.head("/checkpoints/{checkpoint_id}/adapter", include_in_schema=False, dependencies=needs("models"))
@router.get(
    "/checkpoints/{checkpoint_id}/adapter",
    response_class=StreamingResponse,
    dependencies=needs("models"),
    responses={**downloads.RESPONSES},
)
async def download_checkpoint_adapter(
    fine_tuning_job_id: str,
    checkpoint_id: str,
    request: Request,
    principal: Caller,
    resources: Opened,
) -> Response:
    """The adapter at a checkpoint, as a zip archive of a standard PEFT directory."""
    async with resources.read() as session:
        found = await checkpoints.get(session, principal, job_id=fine_tuning_job_id, checkpoint_id=checkpoint_id)
    stored = StoredObject(found.adapter_key, found.adapter_bytes, found.adapter_sha256)
    filename = f"{found.job_id}-step-{found.step}-adapter.zip"
    download = downloads.Download(stored, filename, Action.ADAPTER_DOWNLOADED, found.model_name)
    return await downloads.respond(request, principal, resources.storage, download)


@router.head("/adapter", include_in_schema=False, dependencies=needs("models"))
@router.get(
    "/adapter",
    response_class=StreamingResponse,
    dependencies=needs("models"),
    responses={**downloads.RESPONSES},
)
async def download_adapter(fine_tuning_job_id: str, request: Request, principal: Caller, resources: Opened) -> Response:
    """The adapter that a job made, as a zip archive of a standard PEFT directory."""
    async with resources.read() as session:
        model = await models.of_job(session, principal, job_id=fine_tuning_job_id)
    stored = StoredObject(model.adapter_key, model.adapter_bytes, model.adapter_sha256)
    download = downloads.Download(stored, f"{model.job_id}-adapter.zip", Action.ADAPTER_DOWNLOADED, model.id)
    return await downloads.respond(request, principal, resources.storage, download)


def _read(checkpoint: Checkpoint) -> CheckpointRead:
    return CheckpointRead(
        id=checkpoint.id,
        created_at=unix(checkpoint.created_at),
        fine_tuned_model_checkpoint=checkpoint.model_name,
        fine_tuning_job_id=checkpoint.job_id,
        step_number=checkpoint.step,
        metrics=CheckpointMetrics.model_validate(checkpoint.metrics),
    )
