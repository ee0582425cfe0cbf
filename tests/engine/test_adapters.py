import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.tiny import Family
from worker.contract.errors import TrainError
from worker.contract.spec import LoraSettings
from worker.engine import adapters

LORA = LoraSettings(rank=4, alpha=8, dropout=0.1)


def checksum(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_every_linear_layer_but_the_head_gets_a_float32_adapter(base: PreTrainedModel) -> None:
    adapter = adapters.attach(base, LORA, seed=1)
    parameters = adapters.parameters(adapter)
    assert len(parameters) == 2 * 2 * 7  # A and B, layers, projections
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
    assert not any("lm_head" in name or "embed" in name for name in parameters)


def test_initial_weights_depend_on_the_seed_alone(base: PreTrainedModel) -> None:
    def initial(seed: int) -> list[torch.Tensor]:
        torch.rand(3)  # a run before this one has moved torch's generator
        adapter = adapters.attach(base, LORA, seed=seed)
        weights = [parameter.detach().clone() for parameter in adapters.parameters(adapter).values()]
        adapters.detach(adapter)
        return weights

    first, again, other = initial(1), initial(1), initial(2)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first, other, strict=True))


def test_initial_weights_are_kaiming_uniform_and_zero(base: PreTrainedModel) -> None:
    for name, parameter in adapters.parameters(adapters.attach(base, LORA, seed=1)).items():
        if ".lora_B." in name:
            assert parameter.abs().max() == 0
        else:
            bound = parameter.shape[1] ** -0.5
            assert parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)


def test_detach_leaves_the_base_as_it_was(base: PreTrainedModel) -> None:
    before, modules = checksum(base), [(name, type(module)) for name, module in base.named_modules()]
    adapter = adapters.attach(base, LORA, seed=1)
    with torch.no_grad():
        for parameter in adapters.parameters(adapter).values():
            parameter.normal_()
    adapters.detach(adapter)
    assert checksum(base) == before
    assert [(name, type(module)) for name, module in base.named_modules()] == modules
    assert not hasattr(base, "peft_config")
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_saved_weights_come_back_bit_for_bit(base: PreTrainedModel, tmp_path: Path) -> None:
    adapter = adapters.attach(base, LORA, seed=1)
    with torch.no_grad():
        for parameter in adapters.parameters(adapter).values():
            parameter.normal_()
    saved = [parameter.detach().clone() for parameter in adapters.parameters(adapter).values()]
    adapters.save(adapter, tmp_path / "adapter", base_id="tiny/base")
    adapters.reset(adapter, seed=9)
    adapters.restore(adapter, tmp_path / "adapter")
    assert all(torch.equal(*pair) for pair in zip(saved, adapters.parameters(adapter).values(), strict=True))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny/base"
    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (4, 8, True)


def test_weights_of_another_rank_are_refused(base: PreTrainedModel, tmp_path: Path) -> None:
    adapter = adapters.attach(base, LORA, seed=1)
    adapters.save(adapter, tmp_path / "adapter", base_id="tiny/base")
    adapters.detach(adapter)
    adapter = adapters.attach(base, LoraSettings(rank=8), seed=1)
    with pytest.raises(ValueError, match="other tensors"):
        adapters.restore(adapter, tmp_path / "adapter")


def test_only_the_named_layers_get_an_adapter(base: PreTrainedModel) -> None:
    adapter = adapters.attach(base, LoraSettings(target_modules=("v_proj", "q_proj", "q_proj")), seed=1)
    assert {name.split(".")[-4] for name in adapters.parameters(adapter)} == {"q_proj", "v_proj"}
    assert len(adapters.parameters(adapter)) == 2 * 2 * 2


@pytest.mark.parametrize("unknown", ["lm_head", "embed_tokens", "self_attn.q_proj", "wq"])
def test_layers_that_the_base_does_not_have_are_refused_by_name(base: PreTrainedModel, unknown: str) -> None:
    with pytest.raises(TrainError, match=f"no linear layers named {unknown};.*up_proj, v_proj") as caught:
        adapters.attach(base, LoraSettings(target_modules=("q_proj", unknown)), seed=1)
    assert (caught.value.code, caught.value.param) == ("unknown_target_module", "hone.adapter.target_modules")


def test_no_layers_at_all_are_refused(base: PreTrainedModel) -> None:
    with pytest.raises(TrainError, match="named nothing"):
        adapters.attach(base, LoraSettings(target_modules=()), seed=1)


def test_a_fresh_dora_adapter_changes_nothing(load_base: Callable[[Family], PreTrainedModel]) -> None:
    base = load_base("llama")
    tokens_1T = torch.arange(9)[None]
    base.set_attn_implementation("eager")
    with torch.no_grad():
        before = base(input_ids=tokens_1T).logits
        adapter = adapters.attach(base, LoraSettings(rank=4, dora=True), seed=1)
        torch.testing.assert_close(base(input_ids=tokens_1T).logits, before, rtol=0, atol=1e-6)
    magnitudes = [value for name, value in adapters.parameters(adapter).items() if "magnitude" in name]
    assert len(magnitudes) == 2 * 7
    assert all(value.dtype == torch.float32 for value in magnitudes)
    adapters.detach(adapter)


@pytest.mark.parametrize("lora", [LoraSettings(rank=4, rslora=True), LoraSettings(rank=4, dora=True)])
def test_the_saved_config_names_the_variant(base: PreTrainedModel, tmp_path: Path, lora: LoraSettings) -> None:
    adapters.save(adapters.attach(base, lora, seed=1), tmp_path / "adapter", base_id="tiny/base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["use_dora"]) == (lora.rslora, lora.dora)
