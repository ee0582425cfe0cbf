"""Large models with random weights, built on the device layer by layer: never whole in 16 bits where they are in 4.

Nothing is read or fetched. `--geometry tiny` gives the same families a few thousand weights each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from worker.data.estimate import Geometry, geometry
from worker.engine import attention, base_model, nf4

Quantization = Literal["nf4"] | None

_TINY = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
_TINY |= {"num_key_value_heads": 2, "vocab_size": 512}


@dataclass(frozen=True)
class Subject:
    """A model to train; `tokens_a_step` and `steps` keep a run of real size within a minute or two."""

    family: Callable[..., PreTrainedConfig]
    sizes: dict[str, int]
    quantization: Quantization
    tokens_a_step: int
    steps: int

    def amounts(self, *, tiny: bool) -> tuple[int, int]:
        """Tokens a step, and steps."""
        return (256, 2) if tiny else (self.tokens_a_step, self.steps)

    def config(self, *, tiny: bool) -> PreTrainedConfig:
        sizes = self.sizes | (_TINY if tiny else {})
        return self.family(**sizes, tie_word_embeddings=False, max_position_embeddings=32_768)


def _sizes(vocab: int, hidden: int, mlp: int, layers: int, heads: int, key_heads: int) -> dict[str, int]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip((*names, "num_key_value_heads"), (vocab, hidden, mlp, layers, heads, key_heads), strict=True))


_LLAMA_8B = _sizes(128_256, 4096, 14_336, 32, 32, 8)  # Llama 3.1
_LLAMA_70B = _sizes(128_256, 8192, 28_672, 80, 64, 8)
_QWEN_7B = _sizes(152_064, 3584, 18_944, 28, 28, 4)  # Qwen 2.5

SUBJECTS = {
    "lora-8b": Subject(LlamaConfig, _LLAMA_8B, None, tokens_a_step=32_768, steps=5),
    "qlora-70b": Subject(LlamaConfig, _LLAMA_70B, "nf4", tokens_a_step=16_384, steps=3),
    "qlora-8b": Subject(LlamaConfig, _LLAMA_8B, "nf4", tokens_a_step=32_768, steps=5),
    "lora-7b": Subject(Qwen2Config, _QWEN_7B, None, tokens_a_step=32_768, steps=5),
}


def geometry_of(config: PreTrainedConfig) -> Geometry:
    return geometry(config.to_dict())


def linear_parameters(config: PreTrainedConfig) -> int:
    """Weights that each token is multiplied with: all linear layers and the head, but not the embeddings."""
    sizes = geometry_of(config)
    return sizes.linear_parameters + sizes.vocab * sizes.hidden


def build(config: PreTrainedConfig, device: torch.device, quantization: Quantization) -> PreTrainedModel:
    """A base that our engine can train at once, settled as one that was loaded from a disk."""
    attention.register()
    if quantization is not None:
        nf4.require(device)
    model = build_plain(config, device, attention.PACKED, nf4.quantize if quantization else lambda _layer: None)
    base_model.settle(model, quantization=quantization, tick=lambda: None)
    return model


def build_plain(
    config: PreTrainedConfig,
    device: torch.device,
    attn_implementation: str,
    finish_layer: Callable[[torch.nn.Module], None],
) -> PreTrainedModel:
    """transformers' own model in bfloat16; `finish_layer` is called on each layer before the next takes memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attn_implementation)
    backbone = model.base_model
    generator = torch.Generator(device).manual_seed(0)
    for part in (backbone.embed_tokens, *backbone.layers, backbone.norm, model.lm_head):
        _fill(part.to_empty(device=device), generator)
        if isinstance(part, type(backbone.layers[0])):
            finish_layer(part)
    # Its tables are computed, not learned, so those on no device are of no use.
    backbone.rotary_emb = type(backbone.rotary_emb)(config=model.config).to(device)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, left
    return cast("PreTrainedModel", model.eval())


@torch.no_grad()
def _fill(part: torch.nn.Module, generator: torch.Generator) -> None:
    for parameter in part.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02, generator=generator)
        else:
            parameter.fill_(1.0)
    for module in part.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            module.bias.normal_(0, 0.02, generator=generator)
