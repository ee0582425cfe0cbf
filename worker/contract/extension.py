"""Hone's own fields of a job: what OpenAI's request has no place for, under the one key `hone`.

With the SDK: `client.fine_tuning.jobs.create(..., extra_body={"hone": {"adapter": {"rank": 32}}})`. Unknown
keys are refused by name. What is absent takes the documented default of the resolved spec.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from worker.contract.text import Text

_MODULE_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
_MOST_MODULES = 64
POOL_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
DEFAULT_POOL = "default"


def _target_modules(value: object) -> object:
    """One sentence for every fault: pydantic would tell of each branch of the union."""
    names = value if isinstance(value, list) else []
    if value == "all-linear" or (1 <= len(names) <= _MOST_MODULES and all(map(_is_module_name, names))):
        return value
    raise PydanticCustomError(
        "target_modules", 'expected "all-linear" or up to 64 names of linear layers, such as ["q_proj", "v_proj"]'
    )


def _is_module_name(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(_MODULE_NAME, name) is not None


TargetModules = Annotated[
    Literal["all-linear"] | list[str],
    PlainValidator(_target_modules),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "all-linear"},
                {
                    "type": "array",
                    "items": {"type": "string", "pattern": _MODULE_NAME},
                    "minItems": 1,
                    "maxItems": _MOST_MODULES,
                },
            ]
        }
    ),
]


class Options(BaseModel):
    # Strict: "16" and true are not numbers.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AdapterOptions(Options):
    rank: int = Field(default=16, ge=1, le=512, description="Rows of the adapter's matrices.")
    alpha: float | None = Field(default=None, gt=0, le=4096, description="Default: twice the rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of the adapter's inputs set to zero.")
    target_modules: TargetModules = Field(
        default="all-linear", description="Last parts of layers' names; `all-linear` is all but the head."
    )
    rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank).")
    dora: bool = Field(default=False, description="Weight-decomposed LoRA.")


class EarlyStopping(Options):
    patience: int = Field(ge=1, le=1000, description="Evaluations in a row without a lower validation loss.")


class DpoOptions(Options):
    loss: Literal["sigmoid", "ipo"] = Field(default="sigmoid", description="DPO's own loss, or IPO's.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Assumed share of swapped pairs; with the sigmoid loss only."
    )


_Name = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
_TagName = Annotated[Text, StringConstraints(min_length=1, max_length=64)]
_TagValue = Annotated[Text, StringConstraints(max_length=512)]


class MlflowOptions(Options):
    experiment: _Name = Field(default="hone", description="Made if there is none.")
    run_name: _Name | None = Field(default=None, description="Default: the job's id.")
    tags: dict[_TagName, _TagValue] = Field(default={}, max_length=16, description="Tags of the run.")


class TensorboardOptions(Options):
    """Nothing to choose yet."""


class TrackerOptions(Options):
    mlflow: MlflowOptions | None = Field(default=None, description="Figures go to the operator's MLflow server.")
    tensorboard: TensorboardOptions | None = Field(
        default=None, description="Figures go to event files in the operator's directory."
    )


class Extension(Options):
    """Settings beyond OpenAI's. What is left out takes its default."""

    adapter: AdapterOptions = Field(default=AdapterOptions(), description="The shape of the LoRA adapter.")
    quantization: Literal["nf4"] | None = Field(default=None, description="QLoRA: the base in 4-bit NormalFloat.")
    learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="Absolute peak; excludes learning_rate_multiplier."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="cosine", description="How the learning rate falls after its warm-up."
    )
    warmup_steps: int | None = Field(
        default=None, ge=0, le=100_000, description="Default: 5 % of the steps, at most 100."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW's, on the adapter.")
    max_gradient_norm: float = Field(default=1.0, gt=0, le=1e6, description="Longer gradients are scaled down to it.")
    max_sequence_tokens: int | None = Field(
        default=None,
        ge=16,
        le=2**31 - 1,
        description="Longer examples are cut at the end. Default, and most: what server and base model allow.",
    )
    eval_interval_steps: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="Default: about 20 evaluations a run."
    )
    checkpoint_interval_steps: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="Default: about 10 checkpoints a run, besides those of epochs."
    )
    keep_checkpoint_epochs: int | None = Field(
        default=None, ge=1, le=50, description="Checkpoints of so many last epochs are kept. Default: the server's, 3."
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="End the run when the validation loss falls no more."
    )
    keep_best: bool = Field(default=False, description="The result is the adapter with the lowest validation loss.")
    neftune_noise_alpha: float = Field(default=0.0, ge=0, le=100, description="Noise on the embeddings; 0 is none.")
    train_on_last_turn_only: bool = Field(
        default=False, description="Of each conversation only the last assistant message is trained on."
    )
    trackers: TrackerOptions | None = Field(
        default=None, description="Where else the figures go; Weights & Biases is asked for in `integrations`."
    )
    dpo: DpoOptions = Field(default=DpoOptions(), description="For the method `dpo`.")
    priority: int = Field(default=0, ge=-100, le=100, description="Jobs of higher priority begin first.")
    pool: str = Field(
        default=DEFAULT_POOL, pattern=POOL_NAME, description="Only workers of this pool (`HONE_POOL`) train the job."
    )
    preemptible: bool = Field(
        default=False, description="May be interrupted, at a checkpoint, for a job of higher priority that waits."
    )
