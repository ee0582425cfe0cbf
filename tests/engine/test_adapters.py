import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

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


def test_other_targets_are_refused(base: PreTrainedModel) -> None:
    with pytest.raises(TrainError) as caught:
        adapters.attach(base, LoraSettings(target_modules=("q_proj",)), seed=1)
    assert caught.value.param == "lora.target_modules"
