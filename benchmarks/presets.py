"""The models and data that all benchmarks share: random weights, seeded, built in seconds, offline."""

import math
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

Example = tuple[list[int], list[float]]  # token ids, and their weights in the loss
Pair = tuple[list[int], Example, Example]  # a prompt, the chosen and the rejected answer

EOS = 1  # the last token of each answer of a pair

# Backbone and head: 23.6M + 4.2M; 9.4M + 12.3M; 2.9M + 38.9M (tied).
PRESETS: dict[str, PreTrainedConfig] = {
    "deep": LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
    ),
    "v32k": LlamaConfig(
        vocab_size=32_000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
    ),
    "v151k": Qwen2Config(
        vocab_size=151_936,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    ),
    # The geometry of Qwen 2.5 0.5B.
    "qwen05b": Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
    ),
}


def build_preset(name: str, directory: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write the preset's config and weights to `directory`, in `dtype`, and return it."""
    return build(PRESETS[name], directory, dtype=dtype, seed=seed)


def build(config: PreTrainedConfig, directory: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """The same for any config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(directory)
    return directory


def lognormal_examples(
    count: int,
    *,
    vocab_size: int,
    seed: int = 0,
    mean: float = 200,
    sigma: float = 1.0,
    longest: int = 1024,
    system_prompt: int = 0,
) -> list[Example]:
    """Random tokens with log-normal lengths, cut at `longest`; the second half of each example is trained.

    With `system_prompt`, all examples begin with the same that many tokens, which count towards `longest` alone.
    """
    source = random.Random(seed)
    common = [source.randrange(vocab_size) for _ in range(system_prompt)]
    examples = []
    for _ in range(count):
        length = _lognormal_length(source, mean, sigma, longest - system_prompt)
        tokens = [source.randrange(vocab_size) for _ in range(length)]
        untrained = system_prompt + length // 2
        examples.append(([*common, *tokens], [0.0] * untrained + [1.0] * (length - length // 2)))
    return examples


def lognormal_pairs(
    count: int, *, vocab_size: int, seed: int = 0, mean: float = 200, sigma: float = 1.0, longest: int = 1024
) -> list[Pair]:
    """Pairs of random tokens; the prompt's and each answer's lengths are log-normal, all tokens of an answer trained.

    A prompt is cut at `longest`, and so is an answer: a conversation may have twice as many.
    """
    source = random.Random(seed)

    def tokens() -> list[int]:
        return [source.randrange(2, vocab_size) for _ in range(_lognormal_length(source, mean, sigma, longest))]

    def answer() -> Example:
        given = [*tokens()[:-1], EOS]
        return given, [1.0] * len(given)

    return [(tokens(), answer(), answer()) for _ in range(count)]


def _lognormal_length(source: random.Random, mean: float, sigma: float, longest: int) -> int:
    return max(16, min(longest, round(source.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))
