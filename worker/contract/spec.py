"""What a run is: the resolved, versioned description that the control plane hands to a trainer.

A TrainSpec holds no "auto" and no path. Everything that shapes the losses is in it, so that a run
can be repeated or resumed, bit for bit on CPU, on any worker of the same kind.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SPEC_VERSION = 1


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseModelRef(Frozen):
    """The base model a run trains on; `revision` is a content hash or a pinned hub commit."""

    id: str
    revision: str


class LoraSettings(Frozen):
    rank: int = Field(default=16, ge=1, le=512)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str = "all-linear"


class OptimizerSettings(Frozen):
    """AdamW on the adapter's parameters only; `learning_rate` is absolute and the peak of the schedule."""

    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)


class Execution(Frozen):
    """How a machine carries a run out. Chosen by the trainer before the first step, then stored with the job.

    `token_budget` is the most tokens in one micro-batch; `num_threads` counts CPU threads.
    """

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16", "float16"]
    token_budget: int = Field(ge=1)
    num_threads: int = Field(ge=1)


class TrainSpec(Frozen):
    """One supervised LoRA run. `batch_size` is examples per optimizer step, as at OpenAI."""

    version: Literal[1] = SPEC_VERSION
    method: Literal["supervised"] = "supervised"
    base: BaseModelRef
    seed: int = Field(ge=0, le=2**31 - 1)
    n_epochs: int = Field(ge=1, le=50)
    batch_size: int = Field(ge=1, le=256)
    learning_rate_multiplier: float = Field(gt=0)
    max_sequence_tokens: int = Field(ge=1)
    lora: LoraSettings = LoraSettings()
    optimizer: OptimizerSettings
    eval_interval_steps: int = Field(ge=1)
    eval_examples: int = Field(default=32, ge=1)
    checkpoint_interval_steps: int = Field(ge=1)
    execution: Execution | None = None
