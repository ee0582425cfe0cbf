"""What a job's owner asked of trackers (Weights & Biases, MLflow, TensorBoard), and what came of it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import TERMINAL, Job
from app.errors import InvalidRequest
from app.schemas.jobs import WandbIntegration
from app.services import events
from worker.contract.extension import Extension
from worker.contract.tracking import TrackerKind

_ADVICE = {
    "wandb": "its operator has given it no W&B key (HONE_WANDB_API_KEY)",
    "mlflow": "its operator has named no MLflow server (HONE_MLFLOW_TRACKING_URI)",
    "tensorboard": "its operator has named no directory for it (HONE_TENSORBOARD_DIRECTORY)",
}


@dataclass(frozen=True)
class Asked:
    """One tracker of a job. `run` names its run for ever: a resumed job goes on with it."""

    name: str  # unique in the job: wandb, wandb-2, mlflow, ...
    kind: TrackerKind
    run: str
    options: dict[str, Any]


@dataclass(frozen=True)
class TrackerRun:
    run_id: str
    url: str | None


def check(
    integrations: list[WandbIntegration] | None, extension: Extension | None, *, available: frozenset[str]
) -> None:
    """Raises InvalidRequest for a tracker that this server cannot feed: better now than as a run without a trace."""
    if integrations and "wandb" not in available:
        raise _unavailable("wandb", "integrations[0]")
    for kind in ("mlflow", "tensorboard"):
        trackers = extension.trackers if extension else None
        if trackers is not None and getattr(trackers, kind) is not None and kind not in available:
            raise _unavailable(kind, f"hone.trackers.{kind}")


def asked(job: Job) -> list[Asked]:
    """All trackers of a job."""
    found: list[Asked] = []
    for number, one in enumerate(job.integrations or (), 1):
        suffix = "" if number == 1 else f"-{number}"
        found.append(Asked(f"wandb{suffix}", "wandb", f"{job.id}{suffix}", one["wandb"]))
    trackers: dict[str, Any] = (job.extension or {}).get("trackers") or {}
    kinds: tuple[TrackerKind, ...] = ("mlflow", "tensorboard")
    found += [Asked(kind, kind, job.id, trackers[kind]) for kind in kinds if trackers.get(kind) is not None]
    return found


def config(job: Job) -> dict[str, Any]:
    """What a tracker shows as the run's settings: what ran, and nothing of the server's own affairs."""
    facts = job.dataset or {}
    return {
        "job": job.id,
        "model": job.model,
        "base_model": job.base_model_id,
        "training_file": job.training_file_id,
        "validation_file": job.validation_file_id,
        "seed": job.seed,
        "method": job.method,
        "hyperparameters": job.hyperparameters,
        "metadata": job.job_metadata,
        "spec": {name: value for name, value in (job.spec or {}).items() if name != "execution"},
        "dataset": {part: {k: v for k, v in of.items() if isinstance(v, int | float)} for part, of in facts.items()},
    }


def record_run(_session: AsyncSession, job: Job, _now: datetime, *, name: str, found: TrackerRun) -> None:
    """Note where a tracker's run is. The job is locked by the session."""
    entry = {"run_id": found.run_id, "url": found.url, "error": None}
    job.tracker_runs = {**(job.tracker_runs or {}), name: _was_told(job, name) | entry}


def record_failure(session: AsyncSession, job: Job, now: datetime, *, name: str, reason: str) -> None:
    """Note that a tracker has failed; the first time with an event, if the job has not ended: nothing follows that."""
    entry: dict[str, Any] = {"run_id": None, "url": None, **(job.tracker_runs or {}).get(name, {}), "error": reason}
    if not entry.get("told") and job.status not in TERMINAL:
        entry["told"] = True
        message = f"The integration {name} failed, and gets no more figures of this run; the job goes on: {reason}"
        events.add(session, job, message, now=now, level="warn")
    job.tracker_runs = {**(job.tracker_runs or {}), name: entry}


def _was_told(job: Job, name: str) -> dict[str, Any]:
    return {"told": True} if ((job.tracker_runs or {}).get(name) or {}).get("told") else {}


def _unavailable(kind: str, param: str) -> InvalidRequest:
    sentence = f"The integration '{kind}' is not available on this server: {_ADVICE[kind]}."
    return InvalidRequest(sentence, code="integration_not_available", param=param)
