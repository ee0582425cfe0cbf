"""Checks jobs' files before any GPU is used for them: claims, has a limited child prepare, records the verdict."""

import asyncio
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import BaseModel, File, Job, JobStatus
from app.db.queries import of_project
from app.errors import Unavailable
from app.queue.base import VALIDATION_POOL
from app.resources import Resources
from app.services import base_models, events, job_states, leases, quotas, waiting
from app.services.leases import Lease, LeaseLost
from app.settings import Settings
from app.storage.base import ObjectCorrupt, ObjectMissing, StorageUnavailable
from worker import guarded, workspace
from worker.bases import Bases, BaseUnavailable
from worker.contract.errors import Blame, TrainError
from worker.contract.extension import Extension
from worker.contract.prepare import (
    DataLimits,
    FileReport,
    PrepareReport,
    PrepareRequest,
    ProcessLimits,
)
from worker.contract.spec import BaseModelRef, TrainSpec
from worker.data import auto
from worker.keeper import Keeper
from worker.preparer import Preparer

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_TRANSIENT_RETRY = timedelta(seconds=15)
_PARTS = ("training", "validation")


async def run(resources: Resources, *, owner: str, keeper: Keeper, bases: Bases, draining: asyncio.Event) -> None:
    """Validate one job after another until the worker drains."""
    waiter = resources.queue.waiter(VALIDATION_POOL)
    ttl = resources.settings.lease_seconds
    worker_id, _, _ = owner.partition("/")
    preparer = Preparer(workspace.of_worker(resources.settings, worker_id) / "prepare.log")
    try:
        while not draining.is_set():
            with suppress(OSError):
                await preparer.be_ready()
            claimed = None
            try:
                async with resources.write() as session:
                    claimed = await leases.claim(
                        session,
                        owner=owner,
                        status=JobStatus.VALIDATING_FILES,
                        ttl_seconds=ttl,
                        excluded_bases=bases.excluded(weights=False),
                    )
            except Unavailable:
                _log.warning("the database does not answer; files are checked when it does")
            except (SQLAlchemyError, OSError):
                _log.exception("jobs could not be claimed for validation")
            if claimed is None:
                await waiter.wait(_LOOK_SECONDS)
                continue
            lease, job = claimed
            with keeper.keep(lease) as hold:
                await _validate_until(
                    resources, lease, job, bases=bases, preparer=preparer, revoked=hold.revoked, draining=draining
                )
    finally:
        waiter.close()
        await preparer.close()


async def _validate_until(
    resources: Resources,
    lease: Lease,
    job: Job,
    *,
    bases: Bases,
    preparer: Preparer,
    revoked: asyncio.Event,
    draining: asyncio.Event,
) -> None:
    """Validate, but stop at once when the job is cancelled or the worker drains. Never raises for one job."""
    work = asyncio.create_task(_validate(resources, lease, job, bases, preparer))
    signals = [asyncio.create_task(revoked.wait()), asyncio.create_task(draining.wait())]
    await asyncio.wait([work, *signals], return_when=asyncio.FIRST_COMPLETED)
    for task in (work, *signals):
        task.cancel()
    await asyncio.gather(*signals, return_exceptions=True)
    try:
        await work
    except (asyncio.CancelledError, Unavailable):  # an outage is not the job's fault: it is validated anew
        await _settle(resources, lease, None)
    except LeaseLost:
        _log.info("job %s: no longer ours", job.id)
    except (TrainError, BaseUnavailable) as error:
        await _settle(resources, lease, error)
    except StorageUnavailable:
        _log.warning("job %s: storage is not available; its files are checked when it is", job.id, exc_info=True)
        await _settle(resources, lease, TrainError("storage_unavailable", "", blame=Blame.TRANSIENT))
    except (SQLAlchemyError, OSError, ValueError) as error:
        _log.exception("job %s: the files could not be checked", job.id)
        crash = TrainError("internal_error", "The worker failed while checking the files", blame=Blame.INTERNAL)
        crash.__cause__ = error
        await _settle(resources, lease, crash)


async def _validate(resources: Resources, lease: Lease, job: Job, bases: Bases, preparer: Preparer) -> None:
    directory = workspace.of_lease(resources.settings, lease)
    directory.mkdir(mode=0o700)
    try:
        async with resources.read() as session:
            base = await base_models.get_one(session, job.base_model_id)
        sources = await _stage(resources, job, directory)
        extension = Extension.model_validate(job.extension or {})
        most = min(resources.settings.max_sequence_tokens, base.context_tokens)
        max_sequence_tokens = extension.max_sequence_tokens or most
        if not isinstance(extension.adapter.target_modules, str):
            await _check_target_modules(extension.adapter.target_modules, base, bases)
        async with bases.use(base, weights=False) as base_directory:
            request = PrepareRequest(
                method=_method(job),
                base_directory=str(base_directory),
                training_file=str(directory / "training.jsonl"),
                validation_file=str(directory / "validation.jsonl") if "validation" in sources else None,
                training_file_id=job.training_file_id,
                validation_file_id=job.validation_file_id,
                output_directory=str(directory),
                max_sequence_tokens=max_sequence_tokens,
                rendering_date=job.created_at.date(),
                train_on_last_turn_only=extension.train_on_last_turn_only,
                data=DataLimits(max_rows=resources.settings.max_rows, max_line_bytes=resources.settings.max_line_bytes),
                process=ProcessLimits(
                    memory_bytes=resources.settings.validation_memory_bytes,
                    cpu_seconds=max(1, int(resources.settings.validation_timeout_seconds)),
                ),
            )
            report = await preparer.prepare(request, resources.settings.validation_timeout_seconds)
        if report.error is not None:
            raise TrainError(report.error.code, report.error.message, param=report.error.param)
        dataset = {
            part: await _store_tokens(resources, lease, facts, part, sources[part])
            for part, facts in zip(_PARTS, (report.training, report.validation), strict=True)
            if facts is not None
        }
        spec = _resolve(job, base, report, extension, max_sequence_tokens)
        await guarded.write(resources, lease, partial(_accept, spec, dataset, resources.settings))
    finally:
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def _stage(resources: Resources, job: Job, directory: Path) -> dict[str, File]:
    """Copy the job's files to this machine, verified; returns their rows by part."""
    found: dict[str, File] = {}
    for part, file_id in zip(_PARTS, (job.training_file_id, job.validation_file_id), strict=True):
        if file_id is None:
            continue
        async with resources.read() as session:
            file = await session.scalar(of_project(File, job.project_id).where(File.id == file_id))
        code, param = f"invalid_{part}_file", f"{part}_file"
        if file is None:
            raise TrainError(code, f"The job failed because its {part} file {file_id} was deleted.", param=param)
        try:
            await resources.storage.get_file(file.storage_key, directory / f"{part}.jsonl", sha256=file.sha256)
        except (ObjectMissing, ObjectCorrupt) as error:
            message = f"The job failed because its {part} file {file_id} is damaged in storage. Upload it again."
            raise TrainError("checksum_mismatch", message, param=param) from error
        found[part] = file
    return found


async def _store_tokens(
    resources: Resources, lease: Lease, report: FileReport, part: str, source: File
) -> dict[str, Any]:
    """Put a token file into storage and return what the job remembers of the dataset."""
    assert report.tokens_path is not None
    key = lease.object_key(f"{part}.tokens")
    stored = await resources.storage.put_file(key, Path(report.tokens_path))
    counts = report.model_dump(exclude={"tokens_path", "errors", "num_errors"})
    return {
        **counts,
        "file_sha256": source.sha256,
        "tokens": {"key": stored.key, "sha256": stored.sha256},
    }


async def _accept(
    spec: TrainSpec, dataset: dict[str, Any], settings: Settings, session: AsyncSession, job: Job, now: datetime
) -> None:
    tokens = spec.n_epochs * dataset["training"]["num_trained_tokens"]
    if (refusal := await quotas.beyond_trained_tokens(session, job, settings, tokens)) is not None:
        raise TrainError("trained_tokens_limit_exceeded", refusal, param="training_file")
    job.spec = json.loads(spec.model_dump_json())
    job.dataset = dataset
    job.hyperparameters = {
        "n_epochs": spec.n_epochs,
        "batch_size": spec.batch_size,
        "learning_rate_multiplier": spec.learning_rate_multiplier,
        **({"beta": spec.dpo.beta} if spec.dpo is not None else {}),
    }
    for part, counts in dataset.items():
        for warning in _warnings(part, counts, spec):
            events.add(session, job, warning, now=now, level="warn")
    job_states.move(session, job, JobStatus.QUEUED, message="Files validated, moving job to queued state", now=now)
    for message in (
        await waiting.reason(session, job, silent_seconds=settings.lease_seconds),
        await quotas.reason_to_wait(session, job, settings),
    ):
        if message is not None:
            events.add(session, job, message, now=now, level="warn")
    job.crashes = 0
    leases.release(session, job)


def _warnings(part: str, counts: dict[str, Any], spec: TrainSpec) -> list[str]:
    found: list[str] = []
    max_sequence_tokens = spec.max_sequence_tokens
    nothing = (
        "they hold no token to train on" if spec.method == "supervised" else "their answers hold nothing to compare"
    )
    if counts["truncated"]:
        found.append(
            f"{counts['truncated']} example(s) of the {part} file are longer than {max_sequence_tokens} tokens "
            "and were cut at the end"
        )
    if counts["skipped"]:
        found.append(
            f"{counts['skipped']} example(s) of the {part} file were left out: cut at {max_sequence_tokens} tokens "
            + nothing
        )
    if counts["duplicates"]:
        found.append(f"{counts['duplicates']} example(s) of the {part} file repeat an earlier one exactly")
    if counts["special_strings_in_content"]:
        found.append(
            f"{counts['special_strings_in_content']} special token string(s) inside the {part} file's messages "
            "were encoded as ordinary text"
        )
    return found


async def _settle(resources: Resources, lease: Lease, error: TrainError | BaseUnavailable | None) -> None:
    with suppress(LeaseLost):
        await guarded.write(resources, lease, partial(_record_end, error, lease, resources.settings))


async def _record_end(
    error: TrainError | BaseUnavailable | None,
    lease: Lease,
    settings: Settings,
    session: AsyncSession,
    job: Job,
    now: datetime,
) -> None:
    if error is None:
        leases.release(session, job)
    elif isinstance(error, BaseUnavailable):
        worker_id, _, _ = lease.owner.partition("/")
        nobody = await waiting.reason(session, job, silent_seconds=settings.lease_seconds, besides=worker_id)
        leases.leave_to_others(session, job, message=nobody or f"{error}; the job waits for another", now=now)
    elif error.blame == Blame.TRANSIENT:
        job.not_before_at = now + _TRANSIENT_RETRY
        leases.release(session, job)
    elif error.blame == Blame.USER:
        job.error = {"code": error.code, "message": error.message, "param": error.param}
        job_states.move(session, job, JobStatus.FAILED, message=error.message, now=now, level="error")
        leases.release(session, job)
    else:
        leases.crashed(session, job, reason=error.message, max_crashes=settings.max_crashes, now=now)


async def _check_target_modules(names: Sequence[str], base: BaseModel, bases: Bases) -> None:
    known = {path.rpartition(".")[2] for path in await bases.linear_layers(base)}
    if unknown := sorted(set(names) - known):
        message = f"The base model has no linear layers named {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        raise TrainError("invalid_hyperparameters", message, param="hone.adapter.target_modules")


def _resolve(
    job: Job, base: BaseModel, report: PrepareReport, extension: Extension, max_sequence_tokens: int
) -> TrainSpec:
    counts = report.training.model_dump(include=set(auto.DatasetCounts.model_fields))
    initial = job.initial_adapter
    return auto.build_spec(
        auto.Requested.model_validate(job.hyperparameters),
        auto.DatasetCounts.model_validate(counts),
        base=BaseModelRef(id=base.id, revision=base.revision),
        num_parameters=base.num_parameters,
        seed=job.seed,
        max_sequence_tokens=max_sequence_tokens,
        extension=extension,
        initial_adapter=auto.InitialAdapter(model=initial["model"], lora=initial["lora"]) if initial else None,
        method=_method(job),
    )


def _method(job: Job) -> auto.Method:
    return "dpo" if job.method == "dpo" else "supervised"
