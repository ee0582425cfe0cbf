"""The end of a job: its adapter, its step metrics and its model become visible in one transaction."""

import base64
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from app.db import after_commit
from app.db.audit_models import Action
from app.db.models import Checkpoint, File, FineTunedModel, Job, JobStatus
from app.db.queries import of_job
from app.ids import new_id
from app.resources import Resources
from app.services import audit, events, job_states, leases
from app.services.leases import Lease
from app.storage.base import StoredObject
from worker import checkpoints, guarded, step_records


@dataclass(frozen=True)
class _Results:
    adapter: StoredObject
    metrics: StoredObject
    last_step: int


async def succeed(resources: Resources, lease: Lease, *, adapter_directory: Path, last_step: int) -> None:
    """Publish a finished run. Everything slow happens before the one transaction that tells of it."""
    adapter = await checkpoints.upload_directory(resources, lease, adapter_directory, "adapter.zip")
    async with resources.read() as session:
        metrics = await step_records.all_metrics(session, lease.job_id)
    table = adapter_directory.with_name("step_metrics.csv")
    content = step_records.as_csv(metrics).encode()
    # Encoded here and not where it is served, so that size, hash and ranges are those of what is downloaded.
    table.write_bytes(base64.b64encode(content) if resources.settings.result_files_base64 else content)
    stored = await resources.storage.put_file(lease.object_key("step_metrics.csv"), table)
    results = _Results(adapter, stored, last_step)
    await guarded.write(resources, lease, partial(_publish, results))


async def _publish(results: _Results, session: AsyncSession, job: Job, now: datetime) -> None:
    if leases.is_given_up(job.status):  # paused at its very end: once resumed, its last checkpoint becomes its result
        for stored in (results.adapter, results.metrics):
            after_commit.delete_object(session, stored.key)
        leases.release(session, job)
        return
    last = of_job(Checkpoint, job.id).where(Checkpoint.step == results.last_step)
    name = (await session.execute(last)).scalar_one().model_name
    files = [
        _result_file(job, "step_metrics.csv", results.metrics, now),
        _result_file(job, "adapter.zip", results.adapter, now),
    ]
    session.add_all(files)
    session.add(
        FineTunedModel(
            id=name,
            project_id=job.project_id,
            job_id=job.id,
            base_model_id=job.base_model_id,
            adapter_key=results.adapter.key,
            adapter_sha256=results.adapter.sha256,
            adapter_bytes=results.adapter.bytes,
            created_at=now,
        )
    )
    audit.record(session, None, Action.MODEL_CREATED, name, project_id=job.project_id, job_id=job.id)
    job.result_file_ids = [file.id for file in files]
    job.fine_tuned_model = name
    events.add(session, job, f"New fine-tuned model created: {name}", now=now)
    job_states.move(session, job, JobStatus.SUCCEEDED, message="The job has successfully completed", now=now)
    leases.release(session, job)


def _result_file(job: Job, filename: str, stored: StoredObject, now: datetime) -> File:
    return File(
        id=new_id("file-"),
        project_id=job.project_id,
        filename=filename,
        purpose="fine-tune-results",
        status="processed",
        bytes=stored.bytes,
        sha256=stored.sha256,
        storage_key=stored.key,
        created_at=now,
    )
