"""Supervised fine-tuning: one packed micro-batch through the base, its adapter and the loss.

Shapes: T tokens of a micro-batch, N trained positions, H hidden.
"""

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from worker.contract.errors import TrainError
from worker.engine.documents import documents_of
from worker.engine.head import logit_shape
from worker.engine.losses import linear_cross_entropy
from worker.engine.packing import MicroBatch
from worker.engine.transfer import onto


@dataclass(frozen=True)
class Sums:
    """What a number of examples adds up to; `loss` and `correct` are weighted by token weights.

    Of preference pairs `weight` counts the pairs and `correct` those whose chosen answer has the higher reward.
    Both may still be on the device, where a GPU works on while the host goes ahead; `read` waits for them.
    """

    loss: float | torch.Tensor = 0.0
    correct: float | torch.Tensor = 0.0
    weight: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0
    reward_chosen: float = 0.0
    reward_rejected: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.loss + other.loss,
            self.correct + other.correct,
            self.weight + other.weight,
            self.tokens + other.tokens,
            self.trained_tokens + other.trained_tokens,
            self.reward_chosen + other.reward_chosen,
            self.reward_rejected + other.reward_rejected,
        )

    def read(self) -> "Sums":
        """The same, all in plain numbers."""
        return replace(self, loss=float(self.loss), correct=float(self.correct))

    @property
    def mean_loss(self) -> float:
        return float(self.loss) / self.weight if self.weight > 0 else 0.0

    @property
    def token_accuracy(self) -> float:
        return float(self.correct) / self.weight if self.weight > 0 else 0.0


def train(model: PreTrainedModel, batch: MicroBatch) -> Sums:
    """Forward and backward; adds the gradient of the *summed* loss to the adapter's parameters."""
    if len(batch.sources_N) == 0:
        return _sums(batch, 0.0, 0.0)
    loss, correct = _loss(model, batch)
    loss.backward()
    return _sums(batch, loss.detach(), correct)


@torch.no_grad()
def evaluate(model: PreTrainedModel, batch: MicroBatch) -> Sums:
    """Forward only. The caller has put the model into eval mode."""
    if len(batch.sources_N) == 0:
        return _sums(batch, 0.0, 0.0)
    loss, correct = _loss(model, batch)
    return _sums(batch, loss.detach(), correct)


def hidden_states(model: PreTrainedModel, batch: MicroBatch, *, only_sources: bool = False) -> torch.Tensor:
    """The backbone's last hidden states, [T, H], as the head takes them.

    With `only_sources` they are right at `sources_N` alone, which is all that a loss reads.

    TrainError("unsupported_model") if any layer did not keep the documents apart.
    """
    device = model.device
    # Sources of pairs may stand twice.
    read_R = onto(device, batch.sources_N.unique()) if only_sources else None
    documents = documents_of(batch.bounds, device, batch.prefixes, read_R)
    inputs = {"input_ids": onto(device, batch.tokens_T)[None]}
    if batch.noise is not None:
        embedded_1TH = model.get_input_embeddings()(inputs["input_ids"])
        noise_TH = batch.noise.sample(batch.bounds, embedded_1TH.shape[2])
        inputs = {"inputs_embeds": embedded_1TH + onto(device, noise_TH).to(embedded_1TH)}
    # No attention mask: with packed rows it would join the documents.
    out = model.base_model(
        **inputs,
        position_ids=onto(device, batch.positions_T)[None],
        use_cache=False,
        documents=documents,
    )
    layers = model.config.get_text_config().num_hidden_layers
    if documents.layers_served != set(range(layers)):
        raise TrainError(
            "unsupported_model",
            f"This base model cannot be trained here: only {len(documents.layers_served)} of its {layers} layers "
            "are attention that keeps packed examples apart.",
            param="model",
        )
    return out.last_hidden_state[0]


def _loss(model: PreTrainedModel, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    hidden_TH = hidden_states(model, batch, only_sources=True)
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    device = hidden_TH.device
    return linear_cross_entropy(
        hidden_TH,
        head.weight,
        head.bias,
        onto(device, batch.sources_N),
        onto(device, batch.targets_N),
        onto(device, batch.weights_N),
        shape=logit_shape(model.config),
    )


def _sums(batch: MicroBatch, loss: float | torch.Tensor, correct: float | torch.Tensor) -> Sums:
    return Sums(
        loss=loss,
        correct=correct,
        weight=float(batch.weights_N.double().sum()),
        tokens=batch.num_tokens,
        trained_tokens=len(batch.sources_N),
    )
