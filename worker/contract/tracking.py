"""The lines that a worker and a tracker exchange: one JSON object each, every command answered by one line.

A tracker is a child process that carries one job's figures to one place: Weights & Biases, MLflow or TensorBoard.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

MAX_LINE_BYTES = 1 << 20
TrackerKind = Literal["wandb", "mlflow", "tensorboard"]


class Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


# Commands, worker to tracker.


class Open(Line):
    """Begin, or go on with, the run whose name follows from `job_id`. `access` holds secrets.

    `options` are what the request said of this tracker. `run` tells several runs of one job and kind apart.
    """

    type: Literal["open"] = "open"
    kind: TrackerKind
    run: str
    job_id: str
    project_id: str
    base_model: str
    options: dict[str, Any]
    access: dict[str, str]
    config: dict[str, Any]
    work_directory: str


class StepFigures(Line):
    step: int  # 1-based
    at: float  # unix seconds
    figures: dict[str, float]


class Log(Line):
    type: Literal["log"] = "log"
    steps: list[StepFigures]


class Close(Line):
    """`status` is the job's, or `interrupted` when the job waits to be resumed."""

    type: Literal["close"] = "close"
    status: Literal["succeeded", "failed", "cancelled", "interrupted"]
    summary: dict[str, str | float | None]


Command = Annotated[Open | Log | Close, Field(discriminator="type")]

# Answers, tracker to worker.


class Opened(Line):
    """`last_step` is the last one that the place has already; later ones are wanted."""

    type: Literal["opened"] = "opened"
    run_id: str
    url: str | None = None
    last_step: int = 0


class Done(Line):
    type: Literal["done"] = "done"


class Failed(Line):
    """The tracker gives up. `reason` is one line, which may quote the place's answer."""

    type: Literal["failed"] = "failed"
    reason: str


Answer = Annotated[Opened | Done | Failed, Field(discriminator="type")]

commands: TypeAdapter[Open | Log | Close] = TypeAdapter(Command)
answers: TypeAdapter[Opened | Done | Failed] = TypeAdapter(Answer)
