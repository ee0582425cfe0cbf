import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    HyperCLOVAXConfig,
    Lfm2Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    StableLmConfig,
)

from tests.engine.families import SIZES, build
from tests.tiny import Family
from worker.contract.errors import TrainError
from worker.engine import base_model


def load(directory: Path, dtype: Any = "float32", tick: Callable[[], None] = lambda: None) -> PreTrainedModel:
    return base_model.load(directory, device="cpu", dtype=dtype, tick=tick)


def test_the_base_is_frozen_and_ticks_as_it_loads(base_directories: dict[Family, Path]) -> None:
    ticks: list[None] = []
    model = load(base_directories["llama"], tick=lambda: ticks.append(None))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert len(ticks) >= 2 * len(list(model.parameters()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_pass_the_probe(base_directories: dict[Family, Path], family: Family, dtype: str) -> None:
    assert load(base_directories[family], dtype=dtype).dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (HyperCLOVAXConfig(**SIZES, logits_scaling=3.0), "differs from its own definition"),
        (StableLmConfig(**SIZES), "bounds of packed documents"),
        (Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), "layers of kind conv"),
        (Qwen3MoeConfig(**SIZES, num_experts=2, moe_intermediate_size=16), "not the weight of a linear layer"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreTrainedConfig) else "",
)
def test_families_that_we_cannot_honour_are_refused(tmp_path: Path, config: PreTrainedConfig, words: str) -> None:
    directory = build(tmp_path / "base", config)
    with pytest.raises(TrainError, match=words) as caught:
        load(directory)
    assert caught.value.code == "unsupported_model"


def spoil(source: Path, directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    shutil.copytree(source, directory)
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    base_directories: dict[Family, Path], tmp_path: Path, value: float
) -> None:
    directory = spoil(
        base_directories["llama"],
        tmp_path / "base",
        lambda weights: weights["model.layers.1.mlp.up_proj.weight"][3].fill_(value),
    )
    with pytest.raises(TrainError, match="up_proj") as caught:
        load(directory)
    assert caught.value.code == "base_model_not_finite"


def test_a_base_with_missing_weights_is_refused(base_directories: dict[Family, Path], tmp_path: Path) -> None:
    directory = spoil(
        base_directories["llama"], tmp_path / "base", lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight")
    )
    with pytest.raises(TrainError, match="up_proj") as caught:
        load(directory)
    assert caught.value.code == "base_model_incomplete"


def test_pickled_weights_are_not_read(base_directories: dict[Family, Path], tmp_path: Path) -> None:
    directory = tmp_path / "base"
    shutil.copytree(base_directories["llama"], directory)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(TrainError) as caught:
        load(directory)
    assert caught.value.code == "base_model_unreadable"
