"""/v1/fine_tuning/jobs"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from app.api import access
from app.api.access import needs
from app.api.deps import PLAIN_INTEGER, After, Caller, Opened, ReadSession, WriteSession
from app.api.retries import REPEATED, ThisAttempt
from app.api.times import unix, unix_or_none
from app.db.models import Job, JobStatus
from app.errors import InvalidRequest
from app.schemas.jobs import (
    DpoBlockRead,
    DpoHyperparametersRead,
    DpoMethodRead,
    HoneDetails,
    HyperparametersRead,
    JobCreate,
    JobError,
    JobList,
    JobRead,
    NoHyperparameters,
    SupervisedBlockRead,
    SupervisedMethodRead,
    TrackerRead,
    WandbIntegrationRead,
    WandbSettingsRead,
)
from app.services import integrations, jobs, quotas, retries
from app.services.quotas import Limit
from app.settings import Settings

router = APIRouter(
    prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"], dependencies=needs("jobs"), responses=access.RESPONSES
)


@router.post("", responses=REPEATED)
async def create_fine_tuning_job(
    body: JobCreate,
    principal: Caller,
    made: ThisAttempt,
    session: WriteSession,
    resources: Opened,
    response: Response,
) -> JobRead:
    """Create a job. Its files are validated first; follow its status or its events.

    With an `Idempotency-Key` a request that is sent again is answered with the job that it has created already, as
    it is now, and with `Idempotent-Replayed: true`; so are the repeated attempts of OpenAI's clients.
    """
    settings = resources.settings
    job, is_known = await retries.create_job(
        session,
        principal,
        made=made,
        body=body,
        max_sequence_tokens=settings.max_sequence_tokens,
        trackers=settings.trackers,
    )
    if is_known:
        response.headers["Idempotent-Replayed"] = "true"
    else:
        await quotas.require_left(session, principal.project_id, settings, Limit.GPU_SECONDS_PER_MONTH)
        await quotas.keep(session, principal.project_id, settings, {Limit.QUEUED_JOBS: 1})
    return _read(job, settings)


@router.get(
    "",
    openapi_extra={
        "parameters": [
            {
                "name": "metadata",
                "in": "query",
                "required": False,
                "style": "deepObject",
                "explode": True,
                "description": "Pairs that a job must have, or the word null for jobs without metadata.",
                "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            }
        ]
    },
)
async def list_fine_tuning_jobs(
    request: Request,
    principal: Caller,
    session: ReadSession,
    resources: Opened,
    after: After = None,
    limit: Annotated[int, Field(ge=0, le=100), PLAIN_INTEGER] = 20,
) -> JobList:
    """List the project's jobs, newest first."""
    metadata = _metadata_filter(request)
    page = await jobs.search(session, principal, after=after, limit=limit, metadata=metadata)
    return JobList(data=[_read(job, resources.settings) for job in page.rows], has_more=page.has_more)


@router.get("/{fine_tuning_job_id}")
async def retrieve_fine_tuning_job(
    fine_tuning_job_id: str, principal: Caller, session: ReadSession, resources: Opened
) -> JobRead:
    job = await jobs.get(session, principal, job_id=fine_tuning_job_id)
    return _read(job, resources.settings)


@router.post("/{fine_tuning_job_id}/cancel")
async def cancel_fine_tuning_job(
    fine_tuning_job_id: str, principal: Caller, session: WriteSession, resources: Opened
) -> JobRead:
    """Cancel a job that has not ended. Cancelling a cancelled job changes nothing."""
    job = await jobs.cancel(session, principal, job_id=fine_tuning_job_id)
    return _read(job, resources.settings)


@router.post("/{fine_tuning_job_id}/pause")
async def pause_fine_tuning_job(
    fine_tuning_job_id: str, principal: Caller, session: WriteSession, resources: Opened
) -> JobRead:
    """Pause a job that is queued or runs. A run saves a checkpoint at its next step, and its slot is free."""
    job = await jobs.pause(session, principal, job_id=fine_tuning_job_id)
    return _read(job, resources.settings)


@router.post("/{fine_tuning_job_id}/resume")
async def resume_fine_tuning_job(
    fine_tuning_job_id: str, principal: Caller, session: WriteSession, resources: Opened
) -> JobRead:
    """Put a paused job back into the queue. It goes on exactly as if it had not been paused."""
    job = await jobs.get(session, principal, job_id=fine_tuning_job_id, lock=True)
    was_paused = job.status == JobStatus.PAUSED
    job = await jobs.resume(session, principal, job_id=fine_tuning_job_id)
    if was_paused:
        await quotas.keep(session, principal.project_id, resources.settings, {Limit.QUEUED_JOBS: 1})
    return _read(job, resources.settings)


def _metadata_filter(request: Request) -> dict[str, str] | Literal["null"] | None:
    """`metadata[key]=value`, any number of times, or `metadata=null`, which the Node client sends as `metadata=`."""
    plain = request.query_params.get("metadata")
    pairs = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if plain not in (None, "null", "") or (plain is not None and pairs) or "" in pairs or len(pairs) > 16:
        raise InvalidRequest("Expected up to 16 of metadata[key]=value, or metadata=null.", param="metadata")
    return pairs if plain is None else "null"


def _read(job: Job, settings: Settings) -> JobRead:
    hyperparameters, method = _method(job)
    status = JobStatus(job.status).value
    return JobRead(
        id=job.id,
        created_at=unix(job.created_at),
        finished_at=unix_or_none(job.finished_at),
        estimated_finish=unix_or_none(job.estimated_finish_at),
        model=job.model,
        fine_tuned_model=job.fine_tuned_model,
        organization_id=job.organization_id,
        status=settings.paused_status if job.status == JobStatus.PAUSED else status,
        training_file=job.training_file_id,
        validation_file=job.validation_file_id,
        result_files=job.result_file_ids,
        trained_tokens=job.trained_tokens,
        seed=job.seed,
        error=JobError(**job.error) if job.error else None,
        hyperparameters=hyperparameters,
        method=method,
        metadata=job.job_metadata,
        integrations=_integrations(job),
        user_provided_suffix=job.suffix,
        hone=HoneDetails(
            status=status,
            requested_model=job.requested_model or job.model,
            current_step=job.current_step,
            total_steps=job.total_steps,
            requested=job.extension,
            spec=job.spec,
            dataset=_facts(job.dataset),
            trackers=_trackers(job),
        ),
    )


def _method(job: Job) -> tuple[HyperparametersRead | NoHyperparameters, SupervisedMethodRead | DpoMethodRead]:
    """What the job shows as its hyperparameters, and the method's block."""
    if job.method == "dpo":
        block = DpoBlockRead(hyperparameters=DpoHyperparametersRead(**job.hyperparameters))
        return NoHyperparameters(), DpoMethodRead(dpo=block)
    hyperparameters = HyperparametersRead(**job.hyperparameters)
    return hyperparameters, SupervisedMethodRead(supervised=SupervisedBlockRead(hyperparameters=hyperparameters))


def _facts(dataset: dict[str, Any] | None) -> dict[str, Any] | None:
    """What validation counted in each file; where its tokens lie is the server's own affair."""
    if dataset is None:
        return None
    return {part: {k: v for k, v in facts.items() if k != "tokens"} for part, facts in dataset.items()}


def _integrations(job: Job) -> list[WandbIntegrationRead]:
    runs = job.tracker_runs or {}
    return [
        WandbIntegrationRead(wandb=WandbSettingsRead(**one.options, run_id=(runs.get(one.name) or {}).get("run_id")))
        for one in integrations.asked(job)
        if one.kind == "wandb"
    ]


def _trackers(job: Job) -> list[TrackerRead]:
    runs = job.tracker_runs or {}
    names = ("run_id", "url", "error")
    return [
        TrackerRead(name=one.name, **{name: (runs.get(one.name) or {}).get(name) for name in names})
        for one in integrations.asked(job)
    ]
