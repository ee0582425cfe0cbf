"""A check, once per load, that our way of computing a model agrees with transformers' own.

The reference is transformers' eager attention, one document at a time, through the model's whole
forward. What a family does that packing, our attention or our head would leave out (a softcap, a
scaled or capped logit, layers that look across documents) shows here, before any training.

Shapes: T tokens, H hidden, V vocabulary.
"""

from typing import cast

import torch
from transformers import PreTrainedModel

from worker.contract.errors import TrainError
from worker.engine import sft
from worker.engine.attention import PACKED
from worker.engine.head import logit_shape
from worker.engine.packing import MicroBatch

_LENGTHS = (11, 6)
# Relative to the logits' norm. Rounding alone stays far below; a wrong computation far above.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


@torch.no_grad()
def check(model: PreTrainedModel) -> None:
    """TrainError("unsupported_model") if packed logits are not those of the reference."""
    model.eval()
    head = cast("torch.nn.Linear", model.get_output_embeddings())
    batch = _documents(head.weight.shape[0])
    packed_TH = sft.hidden_states(model, batch)
    # Every second position as training computes it: where all others are not read.
    packed_TH[::2] = sft.hidden_states(model, batch, only_sources=True)[::2]
    packed_TV = logit_shape(model.config).apply_(head(packed_TH).float())
    model.set_attn_implementation("eager")
    try:
        reference_TV = torch.cat([_alone(model, tokens) for tokens in batch.tokens_T.split(_LENGTHS)]).float()
    finally:
        model.set_attn_implementation(PACKED)
    error = ((packed_TV - reference_TV).norm() / reference_TV.norm()).item()
    if not error <= _TOLERANCE[packed_TH.dtype]:
        raise TrainError(
            "unsupported_model",
            "This base model cannot be trained here: computed for packed examples it differs from its own "
            f"definition (relative difference {error:.2g}).",
            param="model",
        )


def _documents(vocab_size: int) -> MicroBatch:
    # 7919 is a prime, so the ids wander over the whole vocabulary
    tokens_T = (torch.arange(sum(_LENGTHS)) * 7919 + 11) % vocab_size
    sources_N = torch.arange(0, sum(_LENGTHS), 2)
    return MicroBatch(
        tokens_T=tokens_T,
        positions_T=torch.cat([torch.arange(length) for length in _LENGTHS]),
        bounds=(0, _LENGTHS[0], sum(_LENGTHS)),
        sources_N=sources_N,
        targets_N=tokens_T[sources_N],
        weights_N=torch.ones(len(sources_N)),
        num_tokens=sum(_LENGTHS),
    )


def _alone(model: PreTrainedModel, tokens_T: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens_T[None].to(model.device), use_cache=False).logits[0]
