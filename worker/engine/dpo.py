"""Direct preference optimization: one packed micro-batch of pairs through policy, reference and loss.

The reference is the base itself, the adapter switched off: no second copy of the weights, and before the
first update both are equal, so the loss of the first step is ln 2. Its log-probabilities are computed anew
at every step. Kept from the first epoch, they would stem from other packs than a resumed run's, and
resuming would be exact to rounding only.

Shapes: P pairs, N trained positions, T tokens, H hidden; the last dimension of [P, 2] is (chosen, rejected).
"""

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from worker.contract.spec import DpoSettings
from worker.engine import sft
from worker.engine.head import logit_shape
from worker.engine.log_probs import linear_log_probs
from worker.engine.pair_packing import PairBatch
from worker.engine.preference_losses import log_ratios, preference_losses
from worker.engine.sft import Sums
from worker.engine.transfer import onto


def train(model: PreTrainedModel, adapter: PeftModel, batch: PairBatch, settings: DpoSettings) -> Sums:
    """Forward and backward; adds the gradient of the *summed* loss of the pairs to the adapter's parameters."""
    loss, sums = _loss(model, adapter, batch, settings)
    loss.backward()
    return sums


@torch.no_grad()
def evaluate(model: PreTrainedModel, adapter: PeftModel, batch: PairBatch, settings: DpoSettings) -> Sums:
    """Forward only. The caller has put the model into eval mode."""
    return _loss(model, adapter, batch, settings)[1]


def answer_log_probs(model: PreTrainedModel, batch: PairBatch) -> torch.Tensor:
    """The log-probability (nats) of each answer given its prompt, [P, 2] in float64: a sum over trained tokens."""
    row = batch.row
    hidden_TH = sft.hidden_states(model, row, only_sources=True)
    device = hidden_TH.device
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    # The first tokens of both answers are predicted at the same position, their shared prompt's last.
    hidden_NH = hidden_TH.index_select(0, onto(device, row.sources_N))
    shape = logit_shape(model.config)
    log_probs_N = linear_log_probs(hidden_NH, head.weight, head.bias, onto(device, row.targets_N), shape=shape)
    return _by_answer(log_probs_N.double() * onto(device, row.weights_N), batch)


def _loss(
    model: PreTrainedModel, adapter: PeftModel, batch: PairBatch, settings: DpoSettings
) -> tuple[torch.Tensor, Sums]:
    reference_P2 = _reference(model, adapter, batch)
    policy_P2 = answer_log_probs(model, batch)
    trained_P2 = _by_answer(onto(policy_P2.device, batch.row.weights_N).to(policy_P2), batch)
    ratios_P2 = log_ratios(policy_P2, reference_P2, trained_P2, settings)
    loss = preference_losses(ratios_P2, settings).sum()
    rewards_P2 = settings.beta * ratios_P2.detach()
    correct = (rewards_P2[:, 0] > rewards_P2[:, 1]).sum()
    # All at once, since a GPU is waited for each time.
    total, right, chosen, rejected = torch.stack([loss.detach(), correct, *rewards_P2.sum(dim=0)]).tolist()
    return loss, Sums(
        loss=total,
        correct=right,
        weight=float(batch.num_pairs),
        tokens=batch.row.num_tokens,
        trained_tokens=len(batch.row.sources_N),
        reward_chosen=chosen,
        reward_rejected=rejected,
    )


@torch.no_grad()
def _reference(model: PreTrainedModel, adapter: PeftModel, batch: PairBatch) -> torch.Tensor:
    """The base's own log-probabilities, without dropout or noise whatever the policy has."""
    was_training = model.training
    model.eval()
    try:
        with adapter.disable_adapter():
            return answer_log_probs(model, batch)
    finally:
        model.train(was_training)


def _by_answer(values_N: torch.Tensor, batch: PairBatch) -> torch.Tensor:
    """Sums over the trained positions of each answer, [P, 2]."""
    sums_A = torch.zeros(2 * batch.num_pairs, dtype=torch.float64, device=values_N.device)
    return sums_A.index_add(0, onto(values_N.device, batch.answers_N), values_N.double()).view(-1, 2)
