from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import Family, build_tiny_base

MESSAGES = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "How many days? Grüße 👋"},
    {"role": "assistant", "content": "Seven."},
]


def test_the_tokenizer_file_is_loaded_as_it_is(base_directories: dict[Family, Path], family: Family) -> None:
    directory = base_directories[family]
    text = "What is the capital of France? Grüße 👋\n\nTwo numbers."
    plain = Tokenizer.from_file(str(directory / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(directory)
    ids = plain.encode(text, add_special_tokens=False).ids
    assert auto(text)["input_ids"] == ids
    assert plain.decode(ids) == text
    assert len(ids) < len(text.encode())


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "llama",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are terse.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHow many days? Grüße 👋<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nSeven.<|eot_id|>",
        ),
        (
            "qwen2",
            "<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\nHow many days? Grüße 👋<|im_end|>\n"
            "<|im_start|>assistant\nSeven.<|im_end|>\n",
        ),
    ],
)
def test_the_chat_template(base_directories: dict[Family, Path], family: Family, expected: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_directories[family])
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == expected
    ids = tokenizer.apply_chat_template(MESSAGES)["input_ids"]
    assert tokenizer.decode(ids) == expected
    assert max(ids) < AutoModelForCausalLM.from_pretrained(base_directories[family]).config.vocab_size


def test_the_same_arguments_give_the_same_files(
    base_directories: dict[Family, Path], family: Family, tmp_path: Path
) -> None:
    again = build_tiny_base(tmp_path / "again", family=family)
    names = sorted(path.name for path in again.iterdir())
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(names)
    for name in names:
        assert (again / name).read_bytes() == (base_directories[family] / name).read_bytes(), name
