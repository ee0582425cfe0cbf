"""Fine-tuning jobs as their owners see them: create, find, cancel, pause and resume."""

import secrets
from datetime import datetime
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db import after_commit
from app.db.audit_models import Action
from app.db.models import TERMINAL, BaseModel, Event, Job, JobStatus
from app.db.queries import database_now, of_project, scoped
from app.errors import InvalidRequest, NotFound
from app.ids import new_id, utc_now
from app.queue.base import VALIDATION_POOL
from app.schemas.jobs import DpoHyperparameters, Hyperparameters, JobCreate
from app.services import (
    adapters,
    audit,
    base_models,
    endings,
    events,
    extensions,
    files,
    integrations,
    job_states,
    leases,
    lookup,
    model_aliases,
)
from app.services.adapters import Adapter
from worker.contract.extension import Extension


async def create(
    session: AsyncSession,
    principal: Principal,
    *,
    body: JobCreate,
    max_sequence_tokens: int | None = None,
    trackers: frozenset[str] = frozenset(),
) -> Job:
    """Record a job and its first events. Raises InvalidRequest, naming the field at fault.

    `max_sequence_tokens` is the server's limit; without one only that of the base model holds. `trackers` are the
    kinds of integrations that the server can feed.
    """
    integrations.check(body.integrations, body.hone, available=trackers)
    hyperparameters = _hyperparameters(body)
    base, initial_adapter = await _start_of(session, principal, body)
    if body.hone is not None:
        extensions.check(
            body.hone,
            method=body.method.type if body.method else "supervised",
            multiplier=hyperparameters.learning_rate_multiplier,
            has_validation_file=body.validation_file is not None,
        )
        most = min(base.context_tokens, max_sequence_tokens or base.context_tokens)
        extensions.check_length(body.hone, most=most, base_model_id=base.id)
    await _require_file(session, principal, file_id=body.training_file, param="training_file")
    if body.validation_file is not None:
        await _require_file(session, principal, file_id=body.validation_file, param="validation_file")
    options = body.hone or Extension()
    model = initial_adapter.model if initial_adapter else base.id
    now = utc_now()
    job = Job(
        id=new_id("ftjob-"),
        project_id=principal.project_id,
        organization_id=principal.organization_id,
        status=JobStatus.VALIDATING_FILES,
        model=model,
        requested_model=body.model if body.model != model else None,
        base_model_id=base.id,
        training_file_id=body.training_file,
        validation_file_id=body.validation_file,
        suffix=body.suffix,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        method=body.method.type if body.method else "supervised",
        quantization=options.quantization,
        priority=options.priority,
        pool=options.pool,
        is_preemptible=options.preemptible,
        hyperparameters=hyperparameters.model_dump(),
        extension=body.hone.model_dump(mode="json", exclude_unset=True) if body.hone else None,
        integrations=[one.model_dump() for one in body.integrations] if body.integrations else None,
        initial_adapter=initial_adapter.remembered() if initial_adapter else None,
        job_metadata=body.metadata,
        current_step=0,
        result_file_ids=[],
        created_at=now,
        fence=0,
        crashes=0,
        event_sequence=0,
    )
    session.add(job)
    await session.flush()
    validating = f"Validating training file: {job.training_file_id}"
    if job.validation_file_id is not None:
        validating += f" and validation file: {job.validation_file_id}"
    events.add(session, job, f"Created fine-tuning job: {job.id}", now=now)
    events.add(session, job, validating, now=now)
    audit.record(session, principal, Action.JOB_CREATED, job.id, training_file=job.training_file_id)
    await session.flush()
    after_commit.wake(session, VALIDATION_POOL)
    return job


async def get(session: AsyncSession, principal: Principal, *, job_id: str, lock: bool = False) -> Job:
    """`lock` holds the row until the end of the transaction."""
    query = scoped(Job, principal)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    job = await lookup.find(session, query, Job.id, job_id)
    if job is None:
        sentence = f"Could not find fine tune: {lookup.shown(job_id)}"
        raise NotFound(sentence, param="fine_tune_id", code="fine_tune_not_found")
    return job


async def search(
    session: AsyncSession,
    principal: Principal,
    *,
    after: str | None,
    limit: int,
    metadata: dict[str, str] | Literal["null"] | None,
) -> lookup.Page[Job]:
    """`metadata` holds pairs that a job must have; "null" finds the jobs without any."""
    query = scoped(Job, principal)
    if metadata == "null":
        query = query.where(Job.job_metadata.is_(None))
    elif metadata:
        for key, value in metadata.items():
            if '"' in key or "\0" in key + value:  # no database takes such a key in a JSON path
                raise InvalidRequest("Metadata cannot be searched for quotation marks or NUL.", param="metadata")
            query = query.where(Job.job_metadata[key].as_string() == value)
    return await lookup.page(session, query, cursor=Job.id, order=(Job.created_at, Job.id), after=after, limit=limit)


async def cancel(session: AsyncSession, principal: Principal, *, job_id: str) -> Job:
    """Final in this transaction: whoever works on the job has lost its lease, and stops. Repeating it is no error."""
    job = await get(session, principal, job_id=job_id, lock=True)
    if job.status == JobStatus.CANCELLED:
        return job
    if job.status in TERMINAL:
        raise _illegal(job, "it cannot be cancelled")
    await _cancel(session, job, now=await database_now(session))
    audit.record(session, principal, Action.JOB_CANCELLED, job.id)
    await session.flush()
    return job


async def cancel_all(session: AsyncSession, *, project_id: str) -> None:
    """What a project has that is archived: nobody is left who could."""
    unfinished = of_project(Job, project_id).where(Job.status.not_in(TERMINAL)).order_by(Job.id).with_for_update()
    locked = (await session.scalars(unfinished)).all()
    now = await database_now(session)
    for job in locked:
        await _cancel(session, job, now=now)
        audit.record(
            session, None, Action.JOB_CANCELLED, job.id, project_id=project_id, reason="the project is archived"
        )


async def _cancel(session: AsyncSession, job: Job, *, now: datetime) -> None:
    job_states.move(session, job, JobStatus.CANCELLED, message="The job has been cancelled", now=now)
    leases.revoke(session, job)
    await endings.after(session, job)


async def pause(session: AsyncSession, principal: Principal, *, job_id: str) -> Job:
    """Paused in this transaction. Repeating it is no error.

    Whoever trains the job keeps the lease until it has saved a checkpoint at the next step; see `leases.is_given_up`.
    """
    job = await get(session, principal, job_id=job_id, lock=True)
    if job.status == JobStatus.PAUSED:
        return job
    if job.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
        raise _illegal(job, "only a queued or running job can be paused")
    now = await database_now(session)
    job_states.move(session, job, JobStatus.PAUSED, message="The job has been paused", now=now)
    job.preempts_job_id = None
    audit.record(session, principal, Action.JOB_PAUSED, job.id)
    await session.flush()
    return job


async def resume(session: AsyncSession, principal: Principal, *, job_id: str) -> Job:
    """Back to the queue. Of a job that is there or runs already nothing is changed: that is what a repetition finds."""
    job = await get(session, principal, job_id=job_id, lock=True)
    if job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        return job
    if job.status != JobStatus.PAUSED:
        raise _illegal(job, "only a paused job can be resumed")
    now = await database_now(session)
    message = "The job has been resumed, moving job to queued state"
    job_states.move(session, job, JobStatus.QUEUED, message=message, now=now)
    job.not_before_at = None
    after_commit.wake(session, job.pool)
    audit.record(session, principal, Action.JOB_RESUMED, job.id)
    await session.flush()
    return job


async def list_events(
    session: AsyncSession, principal: Principal, *, job_id: str, after: str | None, limit: int
) -> lookup.Page[Event]:
    job = await get(session, principal, job_id=job_id)
    query = scoped(Event, principal).where(Event.job_id == job.id)
    return await lookup.page(session, query, cursor=Event.id, order=(Event.sequence,), after=after, limit=limit)


async def _start_of(session: AsyncSession, principal: Principal, body: JobCreate) -> tuple[BaseModel, Adapter | None]:
    """The base model that is named, or the adapter that is named with the base that it is for."""
    base = await model_aliases.base_of(session, body.model)
    if base is not None:
        return base, None
    adapter = await adapters.find(session, principal, name=body.model, lock=True)
    if adapter is None:
        sentence = f"Model {lookup.shown(body.model)} is not available for fine-tuning or does not exist."
        raise InvalidRequest(sentence, code="model_not_found", param="model")
    if body.hone is not None:
        extensions.check_adapter(body.hone.adapter, adapter.lora, model=adapter.model)
    return await base_models.get_one(session, adapter.base_model_id), adapter


def _illegal(job: Job, what: str) -> InvalidRequest:
    """With status 400: clients take a 409 for something that passes, and repeat the request."""
    is_how = {
        JobStatus.VALIDATING_FILES: "is still validating its files",
        JobStatus.CANCELLED: "has already been cancelled",
        JobStatus.SUCCEEDED: "has already succeeded",
        JobStatus.FAILED: "has already failed",
    }.get(job.status, f"is {job.status}")
    return InvalidRequest(f"Job {job.id} {is_how}; {what}.", code="invalid_job_status")


def _hyperparameters(body: JobCreate) -> Hyperparameters:
    """From the method's block, or from the older field; clients of either age are served."""
    if body.method is not None and body.method.type not in ("supervised", "dpo"):
        kind = lookup.shown(body.method.type)
        sentence = f"Method type '{kind}' is not available on this server; 'supervised' and 'dpo' are."
        raise InvalidRequest(sentence, param="method.type")
    older = body.hyperparameters or Hyperparameters()
    if body.method is not None and body.method.type == "dpo":
        if older != Hyperparameters():
            sentence = "'hyperparameters' are those of the method 'supervised'; give 'method.dpo.hyperparameters'."
            raise InvalidRequest(sentence, param="hyperparameters")
        return (body.method.dpo and body.method.dpo.hyperparameters) or DpoHyperparameters()
    block = body.method.supervised if body.method else None
    chosen = (block and block.hyperparameters) or Hyperparameters()
    agreed = {name: _agreed(name, getattr(chosen, name), value) for name, value in older}
    return Hyperparameters.model_validate(agreed)


def _agreed(name: str, chosen: float | str, older: float | str) -> float | str:
    """What both places come to for one number, where "auto" leaves it to the other."""
    if "auto" not in (chosen, older) and chosen != older:
        sentence = (
            f"'hyperparameters' and 'method.supervised.hyperparameters' differ in '{name}'; give only the latter."
        )
        raise InvalidRequest(sentence, param="hyperparameters")
    return older if chosen == "auto" else chosen


async def _require_file(session: AsyncSession, principal: Principal, *, file_id: str, param: str) -> None:
    file = await files.find(session, principal, file_id=file_id, keep=True)
    if file is None:
        sentence = f"The file '{lookup.shown(file_id)}' does not exist."
        raise InvalidRequest(sentence, code="file_not_found", param=param)
    if file.purpose != "fine-tune":
        sentence = f"The file '{file.id}' has the purpose '{file.purpose}'; expected 'fine-tune'."
        raise InvalidRequest(sentence, code="invalid_file_purpose", param=param)
