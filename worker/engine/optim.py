"""AdamW on the adapter's parameters, its schedule, and the one place where a step is taken."""

import math
from collections.abc import Iterable

import torch

from worker.contract.errors import TrainError
from worker.contract.spec import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """The rate of step `step` (1-based): a pure function, so a resumed run needs no scheduler state.

    Warmup rises in equal parts to the peak, which the first step after it has; from there linear and
    cosine fall towards zero, which they would reach one step after the last. No step has rate zero.
    """
    index = step - 1
    if index < settings.warmup_steps:
        return settings.learning_rate * (index + 1) / (settings.warmup_steps + 1)
    progress = (index - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
    match settings.schedule:
        case "constant":
            return settings.learning_rate
        case "linear":
            return settings.learning_rate * (1 - progress)
        case "cosine":
            return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(parameters: Iterable[torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); the rate is set at each step."""
    return torch.optim.AdamW(
        list(parameters),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def take_step(
    optimizer: torch.optim.AdamW, settings: OptimizerSettings, *, total_weight: float, rate: float, step: int
) -> float:
    """Turn the summed gradients into one update; returns the gradient's norm before clipping.

    A norm that is not finite raises TrainError("non_finite_loss") and leaves parameters and moments as they were.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    if total_weight > 0:  # a step may consist of examples whose every weight is zero: its gradient is zero
        torch._foreach_div_(gradients, total_weight)  # pyright: ignore[reportPrivateImportUsage]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not math.isfinite(norm.item()):
        raise non_finite(step, "gradient")
    torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_gradient_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.item()


def non_finite(step: int, what: str) -> TrainError:
    return TrainError(
        "non_finite_loss",
        f"The {what} became infinite or not a number at step {step}, so training stopped before that step was taken. "
        "A lower learning_rate_multiplier usually helps.",
        param="hyperparameters.learning_rate_multiplier",
    )
