"""Fine-tuning jobs, their events and checkpoints on the wire."""

import math
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.schemas import examples
from app.schemas.common import WHOLE, Wire, whole
from worker.contract.extension import Extension
from worker.contract.text import Text

Auto = Literal["auto"]
Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]


def _number_or_auto(value: object, *, kind: type, minimum: float, maximum: float, limits: str) -> int | float | str:
    if value is None or (isinstance(value, str) and value == "auto"):
        return "auto"
    value = whole(value) if kind is int else value
    number_types = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, number_types) or not minimum <= value <= maximum:
        raise PydanticCustomError("number_or_auto", 'expected "auto" or {limits}', {"limits": limits})
    return kind(value)


def _count(maximum: int) -> tuple[PlainValidator, WithJsonSchema]:
    limits = f"an integer from 1 to {maximum}"
    number = {"type": "integer", "minimum": 1, "maximum": maximum}
    return (
        PlainValidator(partial(_number_or_auto, kind=int, minimum=1, maximum=maximum, limits=limits)),
        WithJsonSchema({"anyOf": [{"const": "auto"}, number]}),
    )


_EPOCHS, _EPOCHS_SCHEMA = _count(50)
_BATCH, _BATCH_SCHEMA = _count(256)
_MULTIPLIER = partial(
    _number_or_auto,
    kind=float,
    minimum=math.nextafter(0, 1),
    maximum=1e6,
    limits="a number above 0, at most 1000000",
)
_MULTIPLIER_SCHEMA = {"anyOf": [{"const": "auto"}, {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6}]}


_BETA = partial(
    _number_or_auto, kind=float, minimum=math.nextafter(0, 1), maximum=2, limits="a number above 0, at most 2"
)
_BETA_SCHEMA = {"anyOf": [{"const": "auto"}, {"type": "number", "exclusiveMinimum": 0, "maximum": 2}]}


class Hyperparameters(Wire):
    n_epochs: Annotated[int | Auto, _EPOCHS, _EPOCHS_SCHEMA] = "auto"
    batch_size: Annotated[int | Auto, _BATCH, _BATCH_SCHEMA] = "auto"
    learning_rate_multiplier: Annotated[
        float | Auto, PlainValidator(_MULTIPLIER), WithJsonSchema(_MULTIPLIER_SCHEMA)
    ] = "auto"


class DpoHyperparameters(Hyperparameters):
    beta: Annotated[float | Auto, PlainValidator(_BETA), WithJsonSchema(_BETA_SCHEMA)] = "auto"


class SupervisedMethod(Wire):
    hyperparameters: Hyperparameters | None = None


class DpoMethod(Wire):
    hyperparameters: DpoHyperparameters | None = None


class Method(Wire):
    type: Annotated[
        Text,  # and no enum of ours: whoever asks for a method that is not offered is told so in words
        Field(description="The block of the other one is ignored."),
        WithJsonSchema({"type": "string", "enum": ["supervised", "dpo"]}),
    ]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_the_chosen_block(cls, value: object) -> object:
        """Clients send the blocks of all methods; what is not chosen need not even be valid."""
        return (
            {k: v for k, v in value.items() if k in ("type", value.get("type"))} if isinstance(value, dict) else value
        )


def _at_most_16(metadata: object) -> object:
    if isinstance(metadata, dict) and len(metadata) > 16:
        raise PydanticCustomError("too_many_pairs", "expected at most 16 pairs")
    return metadata


Metadata = Annotated[
    dict[Annotated[Text, StringConstraints(max_length=64)], Annotated[Text, StringConstraints(max_length=512)]],
    BeforeValidator(_at_most_16),  # before any of a hundred thousand pairs is looked at
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"type": "string", "maxLength": 512},
            "propertyNames": {"maxLength": 64},
            "maxProperties": 16,
        }
    ),
]


class WandbSettings(Wire):
    project: Annotated[Text, StringConstraints(min_length=1, max_length=128)]
    name: Annotated[Text, StringConstraints(max_length=128)] | None = None
    entity: Annotated[Text, StringConstraints(max_length=128)] | None = None
    tags: Annotated[list[Annotated[Text, StringConstraints(max_length=64)]], Field(max_length=64)] | None = None


class WandbIntegration(Wire):
    type: Annotated[Literal["wandb"], Field(description="MLflow and TensorBoard are asked for in `hone.trackers`.")]
    wandb: WandbSettings


class WandbSettingsRead(WandbSettings):
    """`run_id` once the run has begun at Weights & Biases."""

    run_id: str | None


class WandbIntegrationRead(Wire):
    type: Literal["wandb"] = "wandb"
    wandb: WandbSettingsRead


class JobCreate(Wire):
    model_config = examples.JOB_CREATE

    model: Annotated[
        Text,
        Field(
            description="A model as `GET /v1/models` lists them, or a checkpoint's. "
            "A job that names a fine-tuned model or a checkpoint continues from it."
        ),
    ]
    training_file: Annotated[Text, Field(description="The id of a file with the purpose `fine-tune`.")]
    validation_file: Text | None = None
    suffix: Annotated[Text, StringConstraints(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Becomes part of the model's name, where what is not a letter, digit, hyphen, underscore or full "
        "stop of ASCII is a hyphen.",
    )
    seed: Annotated[int, WHOLE, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[WandbIntegration], Field(max_length=5)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(
        default=None,
        description="The older place of `method.supervised.hyperparameters`.",
        json_schema_extra={"deprecated": True},
    )
    hone: Extension | None = Field(default=None, description="Hone's own settings; unknown keys are refused.")


class HyperparametersRead(Wire):
    """As asked for while the files are validated, then the numbers that "auto" stood for."""

    n_epochs: int | Auto
    batch_size: int | Auto
    learning_rate_multiplier: float | Auto


class DpoHyperparametersRead(HyperparametersRead):
    beta: float | Auto


class NoHyperparameters(Wire):
    """Of jobs that are not supervised: theirs stand in `method`."""


class SupervisedBlockRead(Wire):
    hyperparameters: HyperparametersRead


class DpoBlockRead(Wire):
    hyperparameters: DpoHyperparametersRead


class SupervisedMethodRead(Wire):
    type: Literal["supervised"] = "supervised"
    supervised: SupervisedBlockRead


class DpoMethodRead(Wire):
    type: Literal["dpo"] = "dpo"
    dpo: DpoBlockRead


class JobError(Wire):
    code: str
    message: str
    param: str | None


class TrackerRead(Wire):
    """What came of an integration; `error` says why it gets no more figures."""

    name: str
    run_id: str | None
    url: str | None
    error: str | None


class HoneDetails(Wire):
    """What OpenAI's job object has no place for: progress, and the settings that "auto" and defaults stood for.

    `requested` is the request's `hone` object as it was sent, `spec` all that it and the defaults came to; `status`
    is the job's, also where the server shows paused jobs as queued; `requested_model` is the name that the request
    gave, which may be an alias of the job's `model`.
    """

    status: Status
    requested_model: str
    current_step: int
    total_steps: int | None
    requested: dict[str, Any] | None
    spec: dict[str, Any] | None
    dataset: dict[str, Any] | None
    trackers: list[TrackerRead]


class JobRead(Wire):
    model_config = examples.JOB

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None = Field(description="While the job runs, by how long its last steps took; else null.")
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Status
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None = Field(
        description="Once the job has ended, however: the tokens of its examples times epochs, as far as it came."
    )
    seed: int
    error: JobError | None
    hyperparameters: HyperparametersRead | NoHyperparameters
    method: Annotated[SupervisedMethodRead | DpoMethodRead, Field(discriminator="type")]
    metadata: dict[str, str] | None
    integrations: list[WandbIntegrationRead]
    user_provided_suffix: str | None
    usage_metrics: None = Field(default=None, description="Always null: nothing is billed.")
    shared_with_openai: Literal[False] = False
    hone: HoneDetails


class JobList(Wire):
    model_config = examples.JOBS

    object: Literal["list"] = "list"
    data: list[JobRead]
    has_more: bool


class EventRead(Wire):
    model_config = examples.EVENT

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any]


class EventList(Wire):
    model_config = examples.EVENTS

    object: Literal["list"] = "list"
    data: list[EventRead]
    has_more: bool


class CheckpointMetrics(Wire):
    step: float | None = None
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class CheckpointRead(Wire):
    model_config = examples.CHECKPOINT

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


class CheckpointList(Wire):
    model_config = examples.CHECKPOINTS

    object: Literal["list"] = "list"
    data: list[CheckpointRead]
    first_id: str | None
    last_id: str | None
    has_more: bool
