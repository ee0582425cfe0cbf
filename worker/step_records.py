"""A run's figures as rows: step metrics, their events, and the table that users download."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Job, JobStatus, StepMetric
from app.db.queries import of_job
from app.services import events, metering
from worker.contract.events import Evaluation, Step
from worker.contract.tracking import StepFigures

CSV_COLUMNS: tuple[str, ...] = (
    "step",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
    "learning_rate",
    "tokens",
    "trained_tokens",
)
# For DPO, after all others.
REWARD_COLUMNS: tuple[str, ...] = tuple(
    f"{kind}_reward_{answer}" for kind in ("train", "valid", "full_valid") for answer in ("chosen", "rejected")
)


# Figures whose names tell of what they were computed on, as in events; the others are the step's own.
_FIGURES = {
    "loss": "{kind}_loss",
    "token_accuracy": "{kind}_mean_token_accuracy",
    "reward_chosen": "{kind}_reward_chosen",
    "reward_rejected": "{kind}_reward_rejected",
}


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step with the evaluations made after it."""

    step: Step
    evaluations: Sequence[Evaluation] = field(default=())


async def write(
    session: AsyncSession, job: Job, records: Sequence[StepRecord], *, seconds_a_step: float, now: datetime
) -> None:
    """Add metrics and events for steps that have none yet: what a resumed run repeats is left as it was.

    When the job will be done follows from `seconds_a_step`; one that was paused is not expected to end.
    """
    first = min(record.step.step for record in records)
    known_rows = await session.scalars(of_job(StepMetric, job.id).where(StepMetric.step >= first))
    known = {row.step for row in known_rows if row.kind == "train"}
    for record in records:
        if record.step.step in known:
            continue
        metering.count_tokens(session, job, record.step.tokens, now=now)
        for kind, values in _metrics(record):
            session.add(
                StepMetric(
                    job_id=job.id,
                    project_id=job.project_id,
                    step=record.step.step,
                    kind=kind,
                    created_at=now,
                    values=values,
                )
            )
        message, data = _event(record, job.total_steps or record.step.step)
        events.add(session, job, message, now=now, type="metrics", data=data)
    last = records[-1].step
    job.current_step = max(job.current_step, last.step)
    if job.total_steps is not None and job.status == JobStatus.RUNNING:
        left = (job.total_steps - last.step) * seconds_a_step
        job.estimated_finish_at = now + timedelta(seconds=left)


async def step_figures(session: AsyncSession, job_id: str, step: int) -> dict[str, Any]:
    """The contract's metrics of one step, as a checkpoint shows them."""
    rows = await session.scalars(of_job(StepMetric, job_id).where(StepMetric.step == step))
    figures: dict[str, Any] = {"step": step}
    for row in rows:
        figures[f"{row.kind}_loss"] = row.values["loss"]
        figures[f"{row.kind}_mean_token_accuracy"] = row.values["token_accuracy"]
    return figures


async def figures_after(session: AsyncSession, job_id: str, step: int, *, limit: int) -> list[StepFigures]:
    """The figures of the next steps, up to `limit` of them, by the names that events give them."""
    query = of_job(StepMetric, job_id).where(StepMetric.step > step, StepMetric.step <= step + limit)
    found: dict[int, StepFigures] = {}
    for row in await session.scalars(query.order_by(StepMetric.step)):
        one = found.setdefault(row.step, StepFigures(step=row.step, at=row.created_at.timestamp(), figures={}))
        for name, value in row.values.items():
            if isinstance(value, int | float) and name != "seconds":
                one.figures[_FIGURES.get(name, name).format(kind=row.kind)] = float(value)
    return list(found.values())


async def all_metrics(session: AsyncSession, job_id: str) -> list[StepMetric]:
    query = of_job(StepMetric, job_id).order_by(StepMetric.step)
    return list(await session.scalars(query))


def as_csv(metrics: Sequence[StepMetric]) -> str:
    """OpenAI's step metrics table, with a few columns more at its end; a cell without a figure is empty."""
    table: dict[int, dict[str, Any]] = {}
    for row in metrics:
        cells = table.setdefault(row.step, {"step": row.step})
        if row.kind == "train":
            cells["train_loss"] = f"{row.values['loss']:.5f}"
            cells["train_accuracy"] = f"{row.values['token_accuracy']:.5f}"
            cells["learning_rate"] = f"{row.values['learning_rate']:.8g}"
            cells["tokens"] = row.values["tokens"]
            cells["trained_tokens"] = row.values["trained_tokens"]
        else:
            cells[f"{row.kind}_loss"] = f"{row.values['loss']:.5f}"
            cells[f"{row.kind}_mean_token_accuracy"] = f"{row.values['token_accuracy']:.5f}"
        cells |= {f"{row.kind}_{name}": f"{value:.5f}" for name, value in _rewards(row.values).items()}
    text = io.StringIO()
    columns = CSV_COLUMNS + REWARD_COLUMNS if any(_rewards(row.values) for row in metrics) else CSV_COLUMNS
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.values())
    return text.getvalue()


def _metrics(record: StepRecord) -> list[tuple[str, dict[str, Any]]]:
    rows = [("train", record.step.model_dump(exclude={"type", "run", "step"}, exclude_none=True))]
    left_out = {"type", "run", "step", "kind"}
    rows += [(one.kind, one.model_dump(exclude=left_out, exclude_none=True)) for one in record.evaluations]
    return rows


def _rewards(values: dict[str, Any]) -> dict[str, float]:
    """The mean rewards of both answers, which only preference training has."""
    return {name: value for name, value in values.items() if name.startswith("reward_") and value is not None}


def _event(record: StepRecord, total_steps: int) -> tuple[str, dict[str, Any]]:
    step = record.step
    message = f"Step {step.step}/{total_steps}: training loss={step.loss:.2f}"
    data: dict[str, Any] = {
        "step": step.step,
        "total_steps": total_steps,
        "train_loss": step.loss,
        "train_mean_token_accuracy": step.token_accuracy,
    }
    for one in record.evaluations:
        name = "validation loss" if one.kind == "valid" else "full validation loss"
        message += f", {name}={one.loss:.2f}"
        data[f"{one.kind}_loss"] = one.loss
        data[f"{one.kind}_mean_token_accuracy"] = one.token_accuracy
    for kind, figures in [("train", step), *((one.kind, one) for one in record.evaluations)]:
        data |= {f"{kind}_{name}": value for name, value in _rewards(figures.model_dump()).items()}
    data |= {
        "epoch": step.epoch,
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "tokens": step.tokens,
        "trained_tokens": step.trained_tokens,
        "tokens_per_second": round(step.tokens / step.seconds, 1) if step.seconds > 0 else None,
    }
    return message, data
