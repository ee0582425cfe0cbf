"""Hone's own fields of a job: what OpenAI's request has no place for, under the one key `hone`.

With the SDK: `client.fine_tuning.jobs.create(..., extra_body={"hone": {"adapter": {"rank": 32}}})`. Unknown
keys are refused by name. What is absent takes the documented default of the resolved spec.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$", max_length=64)]


class Options(BaseModel):
    # Strict: "16" and true are not numbers.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AdapterOptions(Options):
    rank: int = Field(default=16, ge=1, le=512)
    alpha: float | None = Field(default=None, gt=0, le=4096, description="Default: twice the rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | Annotated[list[ModuleName], Field(min_length=1, max_length=64)] = (
        "all-linear"
    )
    rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank).")
    dora: bool = Field(default=False, description="Weight-decomposed LoRA.")


class EarlyStopping(Options):
    patience: int = Field(ge=1, le=1000, description="Evaluations in a row without a lower validation loss.")


class DpoOptions(Options):
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)


class Extension(Options):
    adapter: AdapterOptions = AdapterOptions()
    quantization: Literal["nf4"] | None = Field(default=None, description="QLoRA: the base in 4-bit NormalFloat.")
    learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="Absolute peak; excludes learning_rate_multiplier."
    )
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_steps: int | None = Field(default=None, ge=0, le=100_000)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_gradient_norm: float = Field(default=1.0, gt=0, le=1e6)
    max_sequence_tokens: int | None = Field(default=None, ge=16)
    eval_interval_steps: int | None = Field(default=None, ge=1)
    checkpoint_interval_steps: int | None = Field(default=None, ge=1)
    early_stopping: EarlyStopping | None = None
    keep_best: bool = Field(default=False, description="The result is the adapter with the lowest validation loss.")
    neftune_noise_alpha: float = Field(default=0.0, ge=0, le=100)
    train_on_last_turn_only: bool = False
    dpo: DpoOptions = DpoOptions()
