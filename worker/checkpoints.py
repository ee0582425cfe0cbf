"""Checkpoints and final adapters on their way to storage and back."""

import asyncio
import logging
import re
import shutil
import unicodedata
from datetime import datetime
from functools import partial
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Checkpoint, Job, Organization
from app.db.queries import of_job, server_rows
from app.ids import new_id, random_text
from app.resources import Resources
from app.services import events, objects, retention
from app.services.leases import Lease
from app.storage.base import ObjectCorrupt, ObjectMissing, StoredObject
from worker import guarded, step_records
from worker.contract.errors import TrainError
from worker.data import archive

_log = logging.getLogger(__name__)


async def upload_directory(resources: Resources, lease: Lease, directory: Path, name: str) -> StoredObject:
    """Store a directory as one archive under the lease's fence; the local archive is removed."""
    packed = directory.with_name(f"{directory.name}.zip")
    await asyncio.to_thread(archive.pack, directory, packed)
    stored = await resources.storage.put_file(lease.object_key(name), packed)
    await asyncio.to_thread(packed.unlink)
    return stored


async def save(resources: Resources, lease: Lease, *, step: int, is_last: bool, directory: Path) -> None:
    """Upload a checkpoint whole, then register it. The caller has written the figures of its step.

    A crash in between leaves objects that no row names; the run resumes from the checkpoint before.
    """
    adapter = await upload_directory(resources, lease, directory / "adapter", f"checkpoints/{step}/adapter.zip")
    state = await upload_directory(resources, lease, directory / "state", f"checkpoints/{step}/state.zip")
    epochs = resources.settings.keep_checkpoint_epochs
    await guarded.write(resources, lease, partial(_register, step, is_last, adapter, state, epochs))
    await asyncio.to_thread(shutil.rmtree, directory)


async def restore(resources: Resources, job_id: str, directory: Path) -> Path | None:
    """Unpack the newest checkpoint of a job that is whole, or return None when there is none."""
    async with resources.read() as session:
        found = list(await session.scalars(of_job(Checkpoint, job_id).order_by(Checkpoint.step.desc())))
    for checkpoint in found:
        if checkpoint.state_key is None or checkpoint.state_sha256 is None:
            continue
        target = directory / f"resume-{checkpoint.step}"
        await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)  # of an attempt before, which wrote a part
        try:
            for part, key, sha256 in (
                ("adapter", checkpoint.adapter_key, checkpoint.adapter_sha256),
                ("state", checkpoint.state_key, checkpoint.state_sha256),
            ):
                packed = directory / f"{part}.zip"
                await resources.storage.get_file(key, packed, sha256=sha256)
                await asyncio.to_thread(archive.unpack, packed, target / part)
                packed.unlink()
        except (ObjectMissing, ObjectCorrupt):
            _log.warning("checkpoint %s of job %s is damaged; the one before is used", checkpoint.step, job_id)
            continue
        return target
    return None


async def initial_adapter(resources: Resources, job: Job, directory: Path) -> Path | None:
    """Unpack the adapter that a job continues from, or return None when it begins with a fresh one."""
    initial = job.initial_adapter
    if initial is None:
        return None
    packed, target = directory / "initial-adapter.zip", directory / "initial-adapter"
    try:
        await resources.storage.get_file(initial["key"], packed, sha256=initial["sha256"])
    except (ObjectMissing, ObjectCorrupt) as error:
        message = f"The job failed because the adapter of {initial['model']} is damaged in storage."
        raise TrainError("checksum_mismatch", message, param="model") from error
    await asyncio.to_thread(archive.unpack, packed, target)
    packed.unlink()
    return target


async def model_name(session: AsyncSession, job: Job) -> str:
    """ft:<base>:<organization>:<suffix or nothing>:<8 random characters>, as at OpenAI."""
    query = server_rows(Organization).where(Organization.id == job.organization_id)
    organization = (await session.execute(query)).scalar_one()
    return f"ft:{job.base_model_id}:{organization.name}:{name_part(job.suffix or '')}:{random_text(8)}"


def name_part(text: str) -> str:
    """`text` as it may stand in a model's name, which is divided by colons and stands in URLs: "Schöne neue Welt!" as
    "Schone-neue-Welt"; nothing is left of what has no letters of ASCII. At most 64 characters."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.]+", "-", plain).strip("-")[:64]


async def _register(
    step: int,
    is_last: bool,
    adapter: StoredObject,
    state: StoredObject,
    epochs: int,
    session: AsyncSession,
    job: Job,
    now: datetime,
) -> None:
    checkpoint = await session.scalar(of_job(Checkpoint, job.id).where(Checkpoint.step == step))
    figures = await step_records.step_figures(session, job.id, step)
    replaced: set[str] = set()
    if checkpoint is None:
        checkpoint = await _new_checkpoint(session, job, step, is_last, now)
    else:  # this run went back behind a damaged checkpoint, and has made it anew
        replaced = {key for key in (checkpoint.adapter_key, checkpoint.state_key) if key} - {adapter.key, state.key}
    checkpoint.metrics = figures
    checkpoint.adapter_key, checkpoint.adapter_sha256, checkpoint.adapter_bytes = (
        adapter.key,
        adapter.sha256,
        adapter.bytes,
    )
    checkpoint.state_key, checkpoint.state_sha256, checkpoint.state_bytes = state.key, state.sha256, state.bytes
    session.add(checkpoint)
    job.crashes = 0
    job.has_been_excused = False
    for old in replaced:
        await objects.let_go(session, storage_key=old)
    await session.flush()
    await retention.prune(session, job, epochs=epochs)


async def _new_checkpoint(session: AsyncSession, job: Job, step: int, is_last: bool, now: datetime) -> Checkpoint:
    name = await model_name(session, job)
    if not is_last:  # the last one carries the name of the model that the job makes
        name = f"{name}:ckpt-step-{step}"
        events.add(session, job, f"Checkpoint created at step {step} with Snapshot ID: {name}", now=now)
    return Checkpoint(
        id=new_id("ftckpt_"), job_id=job.id, project_id=job.project_id, step=step, model_name=name, created_at=now
    )
