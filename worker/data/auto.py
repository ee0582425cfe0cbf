"""What "auto" means: from the counts of a prepared file to every number of a run, by published rules.

Pure functions of their arguments. OpenAI's own rules are not public; these aim at good LoRA runs on the
files people have, from ten examples up. The rules, for N examples:

- n_epochs: 3. Under 100 examples as many as show about 300 examples, at most 10; from 25,000 examples
  on 2, from 50,000 on 1.
- batch_size: 0.2 % of N, as OpenAI documents it, but enough that a step sees about 512 trained tokens
  (a gradient from two labels is noise), never so many that the run has fewer than 100 steps, and 1 to 64.
- learning_rate_multiplier: 1.
- learning_rate: multiplier x 2e-4 x (8e9 / parameters) ^ 0.45, between 5e-5 and 1e-2. 2e-4 is the usual
  rate for LoRA on 8B models; the exponent follows what small and large models are seen to need
  (7e-4 at 0.5B, 7.5e-5 at 70B, 6e-3 at 4M). It does not depend on batch size or rank.
- warmup_steps: 5 % of the steps, at most 100.
- schedule, weight_decay, max_gradient_norm, adapter: as worker.contract.extension has them by default.
- For preference pairs (dpo): half as many epochs, rounded up; at least 8 pairs a step instead of 512 tokens, for
  a pair is one comparison however long it is; a tenth of the learning rate (recipes for LoRA have a 40th to
  a 10th, on tens of thousands of pairs; smaller files need the upper end); beta 0.1.
- eval_interval_steps: 20 evaluations a run, but fewer if they cost more than a fifth of the training, and
  at least one an epoch.
- checkpoint_interval_steps: 10 a run, no closer than 10 steps and no further than 250.
"""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.contract.errors import TrainError
from worker.contract.extension import AdapterOptions, DpoOptions, Extension
from worker.contract.spec import BaseModelRef, DpoSettings, LoraSettings, OptimizerSettings, TrainSpec

TARGET_EPOCHS = 3
SMALL_FILE_EXAMPLES = 100
MAX_AUTO_EPOCHS = 10
LARGE_RUN_EXAMPLES = 50_000  # once this many were shown, no further epoch is begun
BATCH_SHARE = 0.002
TRAINED_TOKENS_A_STEP = 512
MIN_STEPS = 100
MAX_AUTO_BATCH = 64
REFERENCE_LEARNING_RATE = 2e-4
REFERENCE_PARAMETERS = 8e9
SIZE_EXPONENT = 0.45
MIN_LEARNING_RATE, MAX_LEARNING_RATE = 5e-5, 1e-2
DPO_EPOCHS_SHARE = 0.5
DPO_LEARNING_RATE_SHARE = 0.1
DPO_PAIRS_A_STEP = 8
DPO_BETA = 0.1
WARMUP_SHARE = 0.05
MAX_WARMUP_STEPS = 100
EVALUATIONS = 20
EVALUATION_COST_SHARE = 0.2
FORWARD_SHARE = 1 / 3  # of the cost of forward and backward together
EVAL_EXAMPLES = 32
CHECKPOINTS = 10
MIN_CHECKPOINT_STEPS, MAX_CHECKPOINT_STEPS = 10, 250


Method = Literal["supervised", "dpo"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Requested(Frozen):
    """The hyperparameters of a job as its owner sent them, within OpenAI's ranges."""

    model_config = ConfigDict(strict=True)

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "auto"
    beta: Literal["auto"] | Annotated[float, Field(gt=0, le=2)] = "auto"  # for dpo only


class DatasetCounts(Frozen):
    """Counts of the prepared training file, after truncation."""

    num_examples: int = Field(ge=1)
    num_tokens: int = Field(ge=1)
    num_trained_tokens: int = Field(ge=1)
    max_example_tokens: int = Field(ge=1)


class Resolved(Frozen):
    """`learning_rate` is absolute; the three requested numbers are what ran, for the job to echo."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    learning_rate: float
    total_steps: int
    warmup_steps: int
    eval_interval_steps: int
    eval_examples: int
    checkpoint_interval_steps: int


class InitialAdapter(Frozen):
    """What a run continues from: a fine-tuned model or checkpoint, and the settings its adapter was made with."""

    model: str
    lora: LoraSettings


def resolve(
    requested: Requested, counts: DatasetCounts, *, num_parameters: int, method: Method = "supervised"
) -> Resolved:
    """Every number of a run; what was requested as a number is kept as it is."""
    n_epochs = auto_epochs(counts.num_examples, method) if requested.n_epochs == "auto" else requested.n_epochs
    batch_size = auto_batch_size(counts, n_epochs, method) if requested.batch_size == "auto" else requested.batch_size
    multiplier = 1.0 if requested.learning_rate_multiplier == "auto" else requested.learning_rate_multiplier
    steps_an_epoch = math.ceil(counts.num_examples / batch_size)
    total = n_epochs * steps_an_epoch
    affordable = math.ceil(EVAL_EXAMPLES * FORWARD_SHARE / (EVALUATION_COST_SHARE * batch_size))
    checkpoint_interval = math.ceil(total / CHECKPOINTS)
    return Resolved(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=multiplier,
        learning_rate=multiplier * base_learning_rate(num_parameters, method),
        total_steps=total,
        warmup_steps=min(MAX_WARMUP_STEPS, math.floor(WARMUP_SHARE * total)),
        eval_interval_steps=min(steps_an_epoch, max(math.ceil(total / EVALUATIONS), affordable)),
        eval_examples=EVAL_EXAMPLES,
        checkpoint_interval_steps=_clamp(checkpoint_interval, MIN_CHECKPOINT_STEPS, MAX_CHECKPOINT_STEPS),
    )


def build_spec(
    requested: Requested,
    counts: DatasetCounts,
    *,
    base: BaseModelRef,
    num_parameters: int,
    seed: int,
    max_sequence_tokens: int,
    extension: Extension,
    initial_adapter: InitialAdapter | None = None,
    method: Method = "supervised",
) -> TrainSpec:
    """The resolved spec of a run.

    An absolute learning rate is echoed as the multiplier that it amounts to. TrainError when the run is
    too short for what was asked.
    """
    resolved = resolve(requested, counts, num_parameters=num_parameters, method=method)
    rate, multiplier = resolved.learning_rate, resolved.learning_rate_multiplier
    if extension.learning_rate is not None:
        usual = base_learning_rate(num_parameters, method)
        rate, multiplier = extension.learning_rate, extension.learning_rate / usual
    return TrainSpec(
        method=method,
        dpo=dpo_settings(requested, extension.dpo) if method == "dpo" else None,
        base=base,
        quantization=extension.quantization,
        initial_adapter=initial_adapter.model if initial_adapter else None,
        seed=seed,
        n_epochs=resolved.n_epochs,
        batch_size=resolved.batch_size,
        learning_rate_multiplier=multiplier,
        max_sequence_tokens=max_sequence_tokens,
        lora=initial_adapter.lora if initial_adapter else lora_settings(extension.adapter),
        optimizer=OptimizerSettings(
            learning_rate=rate,
            schedule=extension.schedule,
            warmup_steps=_warmup_steps(extension, resolved),
            weight_decay=extension.weight_decay,
            max_gradient_norm=extension.max_gradient_norm,
        ),
        eval_interval_steps=extension.eval_interval_steps or resolved.eval_interval_steps,
        eval_examples=resolved.eval_examples,
        checkpoint_interval_steps=extension.checkpoint_interval_steps or resolved.checkpoint_interval_steps,
        early_stopping_patience=extension.early_stopping.patience if extension.early_stopping else None,
        keep_best=extension.keep_best,
        neftune_noise_alpha=extension.neftune_noise_alpha,
        train_on_last_turn_only=extension.train_on_last_turn_only,
    )


def lora_settings(options: AdapterOptions) -> LoraSettings:
    names = options.target_modules
    return LoraSettings(
        rank=options.rank,
        alpha=2.0 * options.rank if options.alpha is None else options.alpha,
        dropout=options.dropout,
        target_modules="all-linear" if isinstance(names, str) else tuple(sorted(set(names))),
        rslora=options.rslora,
        dora=options.dora,
    )


def dpo_settings(requested: Requested, options: DpoOptions) -> DpoSettings:
    beta = DPO_BETA if requested.beta == "auto" else requested.beta
    return DpoSettings(beta=beta, loss=options.loss, label_smoothing=options.label_smoothing)


def auto_epochs(num_examples: int, method: Method = "supervised") -> int:
    if method == "dpo":
        return math.ceil(DPO_EPOCHS_SHARE * auto_epochs(num_examples))
    if num_examples < SMALL_FILE_EXAMPLES:
        return min(MAX_AUTO_EPOCHS, math.ceil(TARGET_EPOCHS * SMALL_FILE_EXAMPLES / num_examples))
    return _clamp(math.ceil(LARGE_RUN_EXAMPLES / num_examples), 1, TARGET_EPOCHS)


def auto_batch_size(counts: DatasetCounts, n_epochs: int, method: Method = "supervised") -> int:
    share = round(BATCH_SHARE * counts.num_examples)
    trained_an_example = counts.num_trained_tokens / counts.num_examples
    enough = DPO_PAIRS_A_STEP if method == "dpo" else math.ceil(TRAINED_TOKENS_A_STEP / trained_an_example)
    wanted = max(share, enough)
    most = min(MAX_AUTO_BATCH, counts.num_examples * n_epochs // MIN_STEPS)
    return _clamp(wanted, 1, max(1, most))


def base_learning_rate(num_parameters: int, method: Method = "supervised") -> float:
    """The peak learning rate for LoRA on a base with this many parameters, at multiplier 1."""
    rate = REFERENCE_LEARNING_RATE * (REFERENCE_PARAMETERS / num_parameters) ** SIZE_EXPONENT
    supervised = min(MAX_LEARNING_RATE, max(MIN_LEARNING_RATE, rate))
    return supervised * DPO_LEARNING_RATE_SHARE if method == "dpo" else supervised


def _warmup_steps(extension: Extension, resolved: Resolved) -> int:
    """A run that ends in its warm-up would never have the learning rate that was asked for."""
    wanted = extension.warmup_steps
    if wanted is None:
        return resolved.warmup_steps
    if wanted >= resolved.total_steps:
        message = f"warmup_steps is {wanted}, but the run has only {resolved.total_steps} steps in all"
        raise TrainError("invalid_hyperparameters", message, param="hone.warmup_steps")
    return wanted


def _clamp(value: int, low: int, high: int) -> int:
    return min(high, max(low, value))
