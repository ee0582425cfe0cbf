"""The operator's view of the installation."""

from typing import Literal

from pydantic import Field

from app.schemas import examples
from app.schemas.common import Wire
from worker.contract.text import Text


class SlotRead(Wire):
    number: int
    device: str = Field(description="A CUDA device, or `cpu`.")
    state: Literal["idle", "busy", "unhealthy"] = Field(description="An unhealthy slot takes no jobs any more.")
    base_model: str | None = Field(description="The base model that is loaded.")
    quantization: str | None
    job_id: str | None = Field(description="The job that the slot works on.")


class WorkerRead(Wire):
    model_config = examples.WORKER

    id: str
    object: Literal["worker"] = "worker"
    hostname: str
    pid: int
    version: str
    pool: str
    kinds: list[str] = Field(
        description="`train` takes the jobs of its pool; `cpu` checks files and sweeps; `python_graders` has a sandbox "
        "for these."
    )
    state: Literal["starting", "ready", "draining", "unhealthy", "dead"]
    slots: list[SlotRead]
    unavailable_bases: dict[str, str] = Field(
        description="Base models that this worker cannot get, with the reason; it leaves their jobs to others."
    )
    started_at: int
    heartbeat_at: int
    drain_requested_at: int | None


class WorkerList(Wire):
    model_config = examples.WORKERS

    object: Literal["list"] = "list"
    data: list[WorkerRead]


class ModelAliasCreate(Wire):
    model_config = examples.MODEL_ALIAS_CREATE

    id: Text = Field(description="The name that clients use, such as `gpt-4o-mini-2024-07-18`.")
    base_model: Text = Field(description="The registered base model that it stands for.")


class ModelAliasRead(Wire):
    model_config = examples.MODEL_ALIAS

    id: str
    object: Literal["model_alias"] = "model_alias"
    base_model: str
    created_at: int


class ModelAliasList(Wire):
    model_config = examples.MODEL_ALIASES

    object: Literal["list"] = "list"
    data: list[ModelAliasRead]


class ModelAliasDeleted(Wire):
    model_config = examples.MODEL_ALIAS_DELETED

    id: str
    object: Literal["model_alias"] = "model_alias"
    deleted: Literal[True] = True
