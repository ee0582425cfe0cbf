"""The memory model's arithmetic; benchmarks/memory_model.py holds it against real runs."""

from typing import Any

import pytest

from tests.engine import examples
from worker.contract.spec import Execution, LoraSettings
from worker.data.estimate import MemoryEstimate, estimate, geometry, largest_micro_batch

QWEN_05B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


def predict(config: dict[str, Any], quantization: Any = None, *, dora: bool = False, **changes: Any) -> MemoryEstimate:
    settings = {"device": "cuda", "dtype": "bfloat16", "token_budget": 4096, "num_threads": 1, **changes}
    lora = LoraSettings(rank=16, dora=dora)
    spec = examples.spec(quantization=quantization, lora=lora, max_sequence_tokens=4096, batch_size=16)
    return estimate(spec, geometry(config), Execution(**settings))


@pytest.mark.parametrize(("config", "parameters"), [(QWEN_05B, 494e6), (LLAMA_8B, 8.03e9)])
def test_parameters_are_those_of_the_published_models(config: dict[str, Any], parameters: float) -> None:
    assert geometry(config).parameters == pytest.approx(parameters, rel=0.002)


def test_nf4_takes_under_three_tenths_of_bfloat16_in_the_linear_layers() -> None:
    layers = geometry(LLAMA_8B)
    rest = 2 * layers.other_parameters
    wide, narrow = (predict(LLAMA_8B, quantization).weights - rest for quantization in (None, "nf4"))
    assert narrow <= 0.3 * wide
    assert predict(LLAMA_8B, "nf4").unpacked == 2 * 4096 * 14336


def test_more_tokens_take_more_and_checkpointing_takes_less() -> None:
    totals = [predict(LLAMA_8B, token_budget=budget).total for budget in (4096, 8192, 16384)]
    assert totals == sorted(set(totals))
    assert predict(LLAMA_8B, gradient_checkpointing=True).activations < 0.2 * predict(LLAMA_8B).activations


def test_dora_keeps_the_outputs_of_every_linear_layer_twice() -> None:
    plain, dora = (predict(LLAMA_8B, dtype="float32", dora=dora) for dora in (False, True))
    outputs = 4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096
    kept = 32 * 2 * 4 * outputs
    assert dora.bytes_per_token - plain.bytes_per_token == pytest.approx(1.1 * kept, rel=1e-3)
    assert (plain.unpacked, dora.unpacked) == (0, 4 * 14336 * (3 * 4096 + 14336))
    assert dora.adapter > plain.adapter


def test_the_first_base_in_nf4_brings_its_library_on_a_cpu() -> None:
    plain, nf4 = (predict(QWEN_05B, quantization, device="cpu").overhead for quantization in (None, "nf4"))
    assert nf4 - plain == 80 << 20
    assert predict(QWEN_05B, "nf4").overhead == predict(QWEN_05B).overhead


def test_the_largest_micro_batch_is_bounded_by_the_examples() -> None:
    spec = examples.spec(batch_size=4, max_sequence_tokens=100)
    assert largest_micro_batch(spec, 4096) == 400
    assert largest_micro_batch(spec, 256) == 256
    assert largest_micro_batch(spec, 16) == 100
    assert largest_micro_batch(examples.spec(method="dpo", batch_size=4, max_sequence_tokens=100), 16) == 200


def test_the_sizes_inside_a_multimodal_config_are_read() -> None:
    assert geometry({"model_type": "gemma3", "text_config": {**LLAMA_8B, "head_dim": 256}}).query_size == 8192
