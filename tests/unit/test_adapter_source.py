"""Adapters made elsewhere: what is taken, and why the others are not."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from worker.contract.spec import LoraSettings
from worker.data import adapter_source, base_layers
from worker.data.adapter_source import CONFIG, WEIGHTS, BadAdapter

LAYERS = {"self_attn.q_proj": (8, 6), "mlp.up_proj": (12, 6)}
RANK = 2
Layers = dict[str, tuple[int, int]]
Import = Callable[..., LoraSettings]


@pytest.fixture
def base(tmp_path: Path) -> Layers:
    directory = tmp_path / "base"
    directory.mkdir()
    tensors = {"model.embed_tokens.weight": (9, 6), "lm_head.weight": (9, 6), "model.norm.weight": (6,)}
    tensors |= {f"model.layers.{n}.{name}.weight": size for n in range(2) for name, size in LAYERS.items()}
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, directory / "model.safetensors")
    return base_layers.linear_layers(directory)


def adapter_tensors(names: tuple[str, ...] = tuple(LAYERS), kind: Any = np.float32) -> dict[str, np.ndarray]:
    tensors = {}
    for layer in range(2):
        for name in names:
            outputs, inputs = LAYERS[name]
            path = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{path}.lora_A.weight"] = np.ones((RANK, inputs), kind)
            tensors[f"{path}.lora_B.weight"] = np.ones((outputs, RANK), kind)
    return tensors


@pytest.fixture
def bring(base: Layers, tmp_path: Path) -> Import:
    def run(tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> LoraSettings:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "base_model_name_or_path": "/etc", "bias": "none"}
        (source / CONFIG).write_text(json.dumps({**config, **changes}))
        save_file(adapter_tensors() if tensors is None else tensors, source / WEIGHTS)
        return adapter_source.import_directory(source, tmp_path / "copy", layers_of_base=base, base_id="acme/base")

    return run


def test_an_adapter_of_all_layers(bring: Import, tmp_path: Path) -> None:
    lora = bring(use_rslora=True, lora_dropout=0.1)
    assert lora == LoraSettings(rank=2, alpha=4, dropout=0.1, target_modules="all-linear", rslora=True)
    config = json.loads((tmp_path / "copy" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == "acme/base"
    assert (config["target_modules"], config["use_rslora"]) == (["q_proj", "up_proj"], True)
    assert load_file(tmp_path / "copy" / WEIGHTS).keys() == adapter_tensors().keys()
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [CONFIG, WEIGHTS]


def test_an_adapter_of_some_layers_in_half_precision(bring: Import) -> None:
    assert bring(adapter_tensors(("self_attn.q_proj",), np.float16)).target_modules == ("q_proj",)


def test_a_dora_adapter(bring: Import) -> None:
    tensors = adapter_tensors(("mlp.up_proj",))
    for layer in range(2):
        tensors[f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_magnitude_vector"] = np.ones(12, np.float32)
    assert bring(tensors, use_dora=True).dora


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"peft_type": None}, "only LORA"),
        ({"task_type": "SEQ_CLS"}, "only CAUSAL_LM"),
        ({"bias": "all"}, "'bias' set"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save' set"),
        ({"rank_pattern": {"q_proj": 4}}, "'rank_pattern' set"),
        ({"layers_to_transform": [0]}, "'layers_to_transform' set"),
        ({"a_future_variant": True}, "'a_future_variant' set"),
        ({"init_lora_weights": "pissa"}, "changes the base model's own weights"),
        ({"r": 4}, "rank 4 and this base need lora_A.weight [4, 6]"),
        ({"r": 1000}, "rank: Input should be less than or equal to 512"),
        ({"lora_alpha": 0}, "alpha: Input should be greater than 0"),
        ({"use_dora": True}, "lora_magnitude_vector ["),
    ],
)
def test_configurations_that_are_not_taken(bring: Import, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadAdapter) as refused:
        bring(**changes)
    assert words in str(refused.value)


def _without(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in tensors.items() if name not in key}


A = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "no tensors"),
        (_without(adapter_tensors(), "layers.1.mlp"), "leaves out model.layers.1.mlp.up_proj"),
        (_without(adapter_tensors(), A), "there is lora_B.weight [12, 2]"),
        ({**adapter_tensors(), A: np.ones((RANK, 7), np.float32)}, "there is lora_A.weight [2, 7]"),
        ({**adapter_tensors(), A: np.ones((RANK, 6), np.int32)}, "of type I32"),
        ({**adapter_tensors(), A: np.full((RANK, 6), np.nan, np.float32)}, "infinite or not a number"),
        ({**adapter_tensors(), A: np.full((RANK, 6), np.inf, np.float16)}, "infinite or not a number"),
        ({**adapter_tensors(), "base_model.model.lm_head.weight": np.ones((9, 6))}, "is not a tensor of a LoRA"),
        ({**adapter_tensors(), "base_model.model.vision.lora_A.weight": np.ones((2, 6))}, "no linear layer 'vision'"),
    ],
)
def test_weights_that_are_not_taken(bring: Import, tensors: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(BadAdapter) as refused:
        bring(tensors)
    assert words in str(refused.value)


@pytest.mark.parametrize(("bits", "is_good"), [(0x3F80, True), (0x7F7F, True), (0x7F80, False), (0xFFC0, False)])
def test_bfloat16_is_looked_through_without_torch(base: Layers, tmp_path: Path, bits: int, is_good: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 4}))
    names, header, place = adapter_tensors(), {}, 0
    for name, tensor in names.items():
        header[name] = {
            "dtype": "BF16",
            "shape": tensor.shape,
            "data_offsets": [place, place := place + 2 * tensor.size],
        }
    text = json.dumps(header).encode()
    content = np.full(place // 2, 0x3F80, np.uint16)
    content[-1] = bits
    (source / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content.tobytes())

    def run() -> LoraSettings:
        return adapter_source.import_directory(source, tmp_path / "copy", layers_of_base=base, base_id="b")

    if is_good:
        assert run().rank == RANK
    else:
        with pytest.raises(BadAdapter, match="infinite or not a number"):
            run()


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"\xff" * 100, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a":{}}x']
)
def test_what_is_not_safetensors(base: Layers, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / CONFIG).write_text('{"peft_type": "LORA"}')
    with pytest.raises(BadAdapter, match=f"holds no {WEIGHTS}"):
        adapter_source.import_directory(source, tmp_path / "copy", layers_of_base=base, base_id="b")
    (source / WEIGHTS).write_bytes(content)
    with pytest.raises(BadAdapter, match="not a whole safetensors file"):
        adapter_source.import_directory(source, tmp_path / "copy", layers_of_base=base, base_id="b")


@pytest.mark.parametrize("config", [b"{", b"[]", b"\xff", b"[" * 100_000, b" " * (1 << 20) + b"{}"])
def test_what_is_not_a_configuration(base: Layers, tmp_path: Path, config: bytes) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / CONFIG).write_bytes(config)
    save_file(adapter_tensors(), source / WEIGHTS)
    with pytest.raises(BadAdapter):
        adapter_source.import_directory(source, tmp_path / "copy", layers_of_base=base, base_id="b")
