"""/v1/fine_tuning/jobs"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from app.api import errors
from app.api.deps import AUTHENTICATED, PLAIN_INTEGER, After, Caller, Opened, ReadSession, WriteSession
from app.api.times import unix, unix_or_none
from app.db.models import Event, Job, JobStatus
from app.errors import InvalidRequest
from app.schemas.jobs import (
    DpoBlockRead,
    DpoHyperparametersRead,
    DpoMethodRead,
    EventList,
    EventRead,
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
from app.services import integrations, jobs

router = APIRouter(
    prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"], dependencies=AUTHENTICATED, responses=errors.RESPONSES
)


@router.post("")
async def create_fine_tuning_job(
    body: JobCreate, principal: Caller, session: WriteSession, resources: Opened
) -> JobRead:
    """Create a job. Its files are validated first; follow its status or its events."""
    settings = resources.settings
    job = await jobs.create(
        session, principal, body=body, max_sequence_tokens=settings.max_sequence_tokens, trackers=settings.trackers
    )
    return _read(job)


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
    after: After = None,
    limit: Annotated[int, Field(ge=0, le=100), PLAIN_INTEGER] = 20,
) -> JobList:
    """List the project's jobs, newest first."""
    metadata = _metadata_filter(request)
    page = await jobs.search(session, principal, after=after, limit=limit, metadata=metadata)
    return JobList(data=[_read(job) for job in page.rows], has_more=page.has_more)


@router.get("/{fine_tuning_job_id}")
async def retrieve_fine_tuning_job(fine_tuning_job_id: str, principal: Caller, session: ReadSession) -> JobRead:
    return _read(await jobs.get(session, principal, job_id=fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/cancel")
async def cancel_fine_tuning_job(fine_tuning_job_id: str, principal: Caller, session: WriteSession) -> JobRead:
    """Cancel a job that has not ended. Cancelling a cancelled job changes nothing."""
    return _read(await jobs.cancel(session, principal, job_id=fine_tuning_job_id))


@router.get("/{fine_tuning_job_id}/events")
async def list_fine_tuning_events(
    fine_tuning_job_id: str,
    principal: Caller,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Field(ge=0, le=1000), PLAIN_INTEGER] = 20,
) -> EventList:
    """List a job's events, newest first."""
    page = await jobs.list_events(session, principal, job_id=fine_tuning_job_id, after=after, limit=limit)
    return EventList(data=[_read_event(event) for event in page.rows], has_more=page.has_more)


def _metadata_filter(request: Request) -> dict[str, str] | Literal["null"] | None:
    """`metadata[key]=value`, any number of times, or `metadata=null`."""
    plain = request.query_params.get("metadata")
    pairs = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if plain not in (None, "null") or (plain and pairs) or "" in pairs or len(pairs) > 16:
        raise InvalidRequest("Expected up to 16 of metadata[key]=value, or metadata=null.", param="metadata")
    return "null" if plain else pairs


def _read(job: Job) -> JobRead:
    hyperparameters, method = _method(job)
    return JobRead(
        id=job.id,
        created_at=unix(job.created_at),
        finished_at=unix_or_none(job.finished_at),
        estimated_finish=unix_or_none(job.estimated_finish_at),
        model=job.model,
        fine_tuned_model=job.fine_tuned_model,
        organization_id=job.organization_id,
        status=JobStatus(job.status).value,
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


def _read_event(event: Event) -> EventRead:
    return EventRead(
        id=event.id,
        created_at=unix(event.created_at),
        level=event.level,  # pyright: ignore[reportArgumentType] - the column holds only these words
        type=event.type,  # pyright: ignore[reportArgumentType] - likewise
        message=event.message,
        data=event.data or {},
    )
