"""Losses of preference pairs as pure functions of the policy's log-ratios to its reference.

Shapes: P pairs; the last dimension of [P, 2] is (chosen, rejected).
"""

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

from worker.contract.spec import DpoSettings


def log_ratios(
    policy_P2: torch.Tensor, reference_P2: torch.Tensor, trained_P2: torch.Tensor, settings: DpoSettings
) -> torch.Tensor:
    """How much likelier (nats) the policy makes each answer than its reference does, [P, 2].

    Of whole answers for the sigmoid loss. For IPO an answer's sum is divided by its trained tokens, as the
    paper's authors advise and TRL does: its loss is a square, which long answers would rule otherwise.
    """
    ratios_P2 = policy_P2 - reference_P2
    return ratios_P2 / trained_P2 if settings.loss == "ipo" else ratios_P2


def preference_losses(ratios_P2: torch.Tensor, settings: DpoSettings) -> torch.Tensor:
    """The loss of each pair, [P].

    Sigmoid: equation 7 of arXiv:2305.18290, with the label smoothing of conservative DPO (equation 3 of
    Mitchell's note, https://ericmitchell.ai/cdpo.pdf). IPO: equation 17 of arXiv:2310.12036.
    """
    margins_P = ratios_P2[:, 0] - ratios_P2[:, 1]
    if settings.loss == "ipo":
        return (margins_P - 1 / (2 * settings.beta)).square()
    rewards_P = settings.beta * margins_P
    swapped = settings.label_smoothing
    return -(1 - swapped) * F.logsigmoid(rewards_P) - swapped * F.logsigmoid(-rewards_P)
