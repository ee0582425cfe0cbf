"""Tiny, randomly initialised Llama and Qwen2 bases with a byte-level tokenizer and a chat template.

Built from configs in a second or two, without a network; the same arguments give the same weights
and the same token ids. `torch` is imported on use, so that tests of the torch-free plane can import
this module for its templates.
"""

import json
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

Family = Literal["llama", "qwen2"]

LLAMA_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- message['content'] | trim }}"
    "{{- '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{%- endif %}"
)
QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)
SPECIAL_TOKENS: dict[Family, list[str]] = {
    "llama": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
_CORPUS = (
    "You are a helpful assistant. Answer the question in one short sentence.",
    "What is the capital of France? The capital of France is Paris.",
    "Please summarise the following text for the user: the weather is mild and the sky is clear.",
    "How many days are there in a week? There are seven days in a week.",
    "Translate the word to English. Write a function that returns the sum of two numbers.",
)


def build_tiny_base(
    directory: Path,
    *,
    family: Family = "llama",
    vocab_size: int = 512,
    hidden_size: int = 64,
    layers: int = 2,
    seed: int = 0,
) -> Path:
    """Write a complete base model directory and return it.

    `vocab_size` is the model's number of rows; the tokenizer has at most as many tokens (it needs
    256 bytes and its special tokens). Llama has an untied head, Qwen2 a tied one; both use grouped
    query attention with 4 query and 2 key/value heads.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory, family=family, vocab_size=vocab_size)
    _write_model(directory, family, vocab_size, hidden_size, layers, seed)
    return directory


def write_tokenizer(directory: Path, *, family: Family = "llama", vocab_size: int = 512) -> None:
    """Write a tokenizer of at most `vocab_size` tokens, with a chat template, to a model's directory."""
    special_tokens = SPECIAL_TOKENS[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    tokenizer.save(str(directory / "tokenizer.json"))
    llama = family == "llama"
    config = {
        # A family's own tokenizer class may rebuild itself and ignore tokenizer.json; this one does not.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>" if llama else None,
        "eos_token": "<|eot_id|>" if llama else "<|im_end|>",
        "pad_token": "<|end_of_text|>" if llama else "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "chat_template": LLAMA_TEMPLATE if llama else QWEN_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write_model(directory: Path, family: Family, vocab_size: int, hidden_size: int, layers: int, seed: int) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    end, pad = ("<|eot_id|>", "<|end_of_text|>") if family == "llama" else ("<|im_end|>", "<|endoftext|>")
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        # Wider than usual: with 0.02 a model this small hardly attends, and leaks would not show.
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.token_to_id("<|begin_of_text|>"),
        "eos_token_id": tokenizer.token_to_id(end),
        "pad_token_id": tokenizer.token_to_id(pad),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "llama":
            model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True))
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):  # they start at zero, where a lost bias would not show
                    torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config = GenerationConfig(
        bos_token_id=sizes["bos_token_id"], eos_token_id=sizes["eos_token_id"], pad_token_id=sizes["pad_token_id"]
    )
    model.save_pretrained(directory)
