"""What leaves the engine: adapters as vLLM and PEFT read them, merged weights.

Shapes: T tokens, V vocabulary.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.engine import families, reference
from tests.tiny import Family
from worker.contract.errors import TrainError
from worker.contract.spec import LoraSettings
from worker.engine import adapters, base_model
from worker.engine.merge import merge

TOKENS_1T = torch.arange(3, 43)[None] * 11
# PEFT asks transformers under a name that it has since changed.
plain_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def adapter_of(directory: Path, out: Path, lora: LoraSettings = reference.LORA) -> Path:
    model = base_model.load(directory, device="cpu", dtype="float32", tick=lambda: None)
    adapters.save(reference.attach(model, lora), out, base_id="tiny/base")
    return out


@pytest.mark.parametrize("family", ["llama3", "gemma2", "phi4", "gpt-neox"])
def test_the_adapter_is_what_vllm_expects(tmp_path: Path, family: str) -> None:
    base = families.build(tmp_path / "base", families.configs()[family])
    adapter = adapter_of(base, tmp_path / "adapter")
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    modules = dict(AutoModelForCausalLM.from_pretrained(base).named_modules())
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        match = re.fullmatch(r"base_model\.model\.(.+\.(\w+))\.lora_([AB])\.weight", name)
        assert match, name
        assert match[2] in config["target_modules"]
        layer = modules[match[1]]
        assert isinstance(layer, torch.nn.Linear)
        assert tensor.shape == ((4, layer.in_features) if match[3] == "A" else (layer.out_features, 4))
    assert all(re.fullmatch(r"\w+", name) for name in config["target_modules"])
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 4, 8, "none")
    assert type(config["lora_alpha"]) is int
    for field in ("modules_to_save", "layers_to_transform", "trainable_token_indices", "rank_pattern"):
        assert not config[field]


@plain_peft
@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama3", reference.LORA),
        ("llama3", LoraSettings(rank=4, alpha=8, rslora=True)),
        ("llama3", LoraSettings(rank=4, alpha=8, dora=True)),
        ("qwen2.5", reference.LORA),
        ("gemma2", reference.LORA),
    ],
)
def test_merged_weights_have_the_adapters_logits(tmp_path: Path, family: str, lora: LoraSettings) -> None:
    """Merged in bfloat16 within 5% of the float32 adapter's logits (found: 1 to 4%, on bases with large weights)."""
    base = families.build(tmp_path / "base", families.configs()[family])
    adapter = adapter_of(base, tmp_path / "adapter", lora)
    merge(base, adapter, tmp_path / "merged")

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=TOKENS_1T).logits[0].float()

    def load(directory: Path, dtype: str) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager")

    exact_TV = logits(PeftModel.from_pretrained(load(base, "float32"), str(adapter)))
    plain_TV = logits(load(base, "float32"))
    merged = load(tmp_path / "merged", "auto")
    assert merged.dtype == torch.bfloat16

    def distance(given_TV: torch.Tensor) -> float:
        return ((given_TV - exact_TV).norm() / exact_TV.norm()).item()

    assert distance(logits(merged)) < 0.05
    assert distance(plain_TV) > 0.2  # the adapter is there to be seen


@plain_peft
def test_a_merged_model_has_the_tokenizer_and_keeps_a_16_bit_dtype(
    load_base: Callable[[Family], PreTrainedModel], base_directories: dict[Family, Path], tmp_path: Path
) -> None:
    half = load_base("llama").half()
    half.save_pretrained(tmp_path / "half")
    adapter = adapter_of(base_directories["llama"], tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "half" / name).write_bytes((base_directories["llama"] / name).read_bytes())
    merge(tmp_path / "half", adapter, tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float16
    messages = [{"role": "user", "content": "Hello"}]
    merged, base = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "merged", base_directories["llama"]))
    assert merged.apply_chat_template(messages) == base.apply_chat_template(messages)
    assert not list(tmp_path.glob(".*"))


@plain_peft
def test_a_merge_that_is_not_finite_is_refused(base_directories: dict[Family, Path], tmp_path: Path) -> None:
    adapter = adapter_of(base_directories["llama"], tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values())).fill_(torch.inf)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(TrainError, match="infinite") as caught:
        merge(base_directories["llama"], adapter, tmp_path / "merged")
    assert caught.value.code == "merge_not_finite"
    assert not (tmp_path / "merged").exists()
