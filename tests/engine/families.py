"""Tiny bases of every family that we promise, with each family's peculiarities switched on and within reach.

Examples have 3 to 40 tokens: sliding windows and original context lengths are shorter than that.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    # Wider than usual: with 0.02 a model this small hardly attends, and leaks would not show.
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [1.5, 2.5, 4.0],
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 0.75,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def _neox_sizes() -> dict[str, Any]:
    return {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}


def configs() -> dict[str, PreTrainedConfig]:
    return {
        "llama3": LlamaConfig(**SIZES, rope_parameters=_LLAMA3),
        "llama-dynamic": LlamaConfig(**{**SIZES, "max_position_embeddings": 16}, rope_parameters=_DYNAMIC),
        "qwen2.5": Qwen2Config(**SIZES, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**SIZES, head_dim=8),
        "mistral": MistralConfig(**SIZES, sliding_window=6),
        "gemma2": Gemma2Config(
            **SIZES,
            **_LAYERS,
            head_dim=8,
            query_pre_attn_scalar=12,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        "gemma3": Gemma3TextConfig(**SIZES, **_LAYERS, head_dim=8, query_pre_attn_scalar=12),
        "phi3": Phi3Config(**SIZES, sliding_window=6),
        "phi4": Phi3Config(**SIZES, rope_parameters=_LONGROPE),
        "gpt-neox": GPTNeoXConfig(**_neox_sizes()),
        "granite": GraniteConfig(**SIZES, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5),
        "cohere": CohereConfig(**SIZES),
    }


NAMES = tuple(configs())


def build(directory: Path, config: PreTrainedConfig) -> Path:
    """Write a base whose norms and biases are random too: at their usual ones and zeros a lost one would not show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(directory)
    return directory
