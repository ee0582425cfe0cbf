"""What a run is: the resolved, versioned description that the control plane hands to a trainer.

A TrainSpec holds no "auto" and no path. Everything that shapes the losses is in it, so that a run
can be repeated or resumed, bit for bit on CPU, on any worker of the same kind.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SPEC_VERSION = 1


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseModelRef(Frozen):
    """The base model a run trains on; `revision` is a content hash or a pinned hub commit."""

    id: str
    revision: str


class LoraSettings(Frozen):
    """`target_modules` are the last parts of module names (q_proj); "all-linear" is every linear layer but the head."""

    rank: int = Field(default=16, ge=1, le=512)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    rslora: bool = False  # scale by alpha / sqrt(rank), arXiv:2312.03732
    dora: bool = False  # weight-decomposed, arXiv:2402.09353


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


class DpoSettings(Frozen):
    """Direct preference optimization: the sigmoid loss of arXiv:2305.18290, or IPO's of arXiv:2310.12036.

    `label_smoothing` is the assumed share of swapped labels (conservative DPO), for the sigmoid loss only.
    IPO's log-probabilities are divided by the answer's trained tokens.
    """

    beta: float = Field(default=0.1, gt=0, le=2)
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)


class Execution(Frozen):
    """How a machine carries a run out. Chosen by the trainer before the first step, then stored with the job.

    `token_budget` is the most tokens in one micro-batch; `num_threads` counts CPU threads;
    `gradient_checkpointing` computes activations twice instead of keeping them. `share_prefixes` computes what
    several examples of a micro-batch begin with once, where that is exact; runs begun before this existed do not.
    `dtype` is what is computed in, and what the base is held in unless `weights_dtype` says otherwise: then its
    matrices are held in that and widened, exactly, to float32 as they are multiplied.
    """

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16", "float16"]
    token_budget: int = Field(ge=1)
    num_threads: int = Field(ge=1)
    gradient_checkpointing: bool = False
    share_prefixes: bool = False
    weights_dtype: Literal["bfloat16", "float16"] | None = None

    @model_validator(mode="after")
    def _is_widened_to_float32(self) -> Self:
        if self.weights_dtype is not None and self.dtype != "float32":
            raise ValueError("weights_dtype is for runs that compute in float32")
        return self


class TrainSpec(Frozen):
    """One LoRA run. `batch_size` is examples (for DPO: pairs) per optimizer step, as at OpenAI.

    `quantization` holds the base in 4-bit NormalFloat with double quantization (QLoRA, arXiv:2305.14314).
    `initial_adapter` names the fine-tuned model or checkpoint that the run continues from.
    `early_stopping_patience` ends the run after that many evaluations in a row without a lower validation
    loss; `keep_best` makes the adapter with the lowest one the result. `neftune_noise_alpha` is the noise on
    embeddings of arXiv:2310.05914; 0 is none. `train_on_last_turn_only` was heeded when the data was prepared.
    """

    version: Literal[1] = SPEC_VERSION
    method: Literal["supervised", "dpo"] = "supervised"
    base: BaseModelRef
    quantization: Literal["nf4"] | None = None
    initial_adapter: str | None = None
    seed: int = Field(ge=0, le=2**31 - 1)
    n_epochs: int = Field(ge=1, le=50)
    batch_size: int = Field(ge=1, le=256)
    learning_rate_multiplier: float = Field(gt=0)
    max_sequence_tokens: int = Field(ge=1)
    lora: LoraSettings = LoraSettings()
    dpo: DpoSettings | None = None
    optimizer: OptimizerSettings
    eval_interval_steps: int = Field(ge=1)
    eval_examples: int = Field(default=32, ge=1)
    checkpoint_interval_steps: int = Field(ge=1)
    early_stopping_patience: int | None = Field(default=None, ge=1)
    keep_best: bool = False
    neftune_noise_alpha: float = Field(default=0.0, ge=0)
    train_on_last_turn_only: bool = False
    execution: Execution | None = None
