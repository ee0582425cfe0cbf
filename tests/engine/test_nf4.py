"""QLoRA: the base in NF4, through the same runs as any other."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.engine import examples, reference
from tests.engine.test_families import assert_equal, eager
from tests.engine.test_run import Recorder, checkpoints, steps
from tests.engine.trainer_process import TrainerProcess, comparable
from tests.tiny import Family
from worker.contract.errors import TrainError
from worker.contract.events import Event, Finished
from worker.contract.spec import Execution, LoraSettings
from worker.engine import adapters, base_model, nf4, sft
from worker.engine.packing import pack

# Of random weights, NF4 keeps about 92 % of the norm; more is lost only if something is wrong.
MOST_WEIGHT_ERROR = 0.11


def load(directory: Path, dtype: Any = "float32") -> PreTrainedModel:
    return base_model.load(directory, device="cpu", dtype=dtype, quantization="nf4", tick=lambda: None)


def spec(**changes: Any) -> Any:
    return examples.spec(quantization="nf4", **changes)


@pytest.fixture(scope="module")
def llama_directory(base_directories: dict[Family, Path]) -> Path:
    return base_directories["llama"]


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> PreTrainedModel:
    return load(llama_directory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path, llama: PreTrainedModel) -> list[Event]:
    return Recorder().run(examples.start(tmp_path_factory.mktemp("nf4"), llama_directory, spec()), llama)


def checksum(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_linear_layers_but_the_head_are_quantized(
    base_directories: dict[Family, Path], family: Family, dtype: str
) -> None:
    model = load(base_directories[family], dtype)
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert kinds.pop("lm_head") is torch.nn.Linear
    assert set(kinds.values()) == {nf4.Nf4Linear}
    assert len(kinds) == 14
    stored = load_file(base_directories[family] / "model.safetensors")
    for name, module in model.named_modules():
        if isinstance(module, nf4.Nf4Linear):
            original = stored[f"{name}.weight"].float()
            assert module.weight.dtype == getattr(torch, dtype)
            assert (module.weight.float() - original).norm() < MOST_WEIGHT_ERROR * original.norm()
            held = sum(tensor.nbytes for key, tensor in module.state_dict().items() if key != "bias")
            assert held <= 0.3 * 2 * original.numel()  # of what bfloat16 takes


def test_gradients_equal_those_of_a_plain_layer() -> None:
    layer = nf4.Nf4Linear.of(torch.nn.Linear(64, 48).requires_grad_(False))
    x_TI = torch.randn(5, 64, requires_grad=True)
    layer(x_TI).square().sum().backward()
    found_TI, x_TI.grad = x_TI.grad, None
    torch.nn.functional.linear(x_TI, layer.weight, layer.bias).square().sum().backward()
    torch.testing.assert_close(found_TI, x_TI.grad, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def dequantized(tmp_path_factory: pytest.TempPathFactory, llama: PreTrainedModel, llama_directory: Path) -> Path:
    """A plain base with the weights that NF4 holds, unpacked."""
    weights = load_file(llama_directory / "model.safetensors")
    weights |= {f"{n}.weight": m.weight for n, m in llama.named_modules() if isinstance(m, nf4.Nf4Linear)}
    directory = tmp_path_factory.mktemp("dequantized")
    (directory / "config.json").write_bytes((llama_directory / "config.json").read_bytes())
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("dora", [False, True])
def test_losses_and_gradients_equal_the_eager_reference_on_dequantized_weights(
    llama: PreTrainedModel, dequantized: Path, tmp_path: Path, dora: bool
) -> None:
    """To 1e-5, as in tests/engine/test_families.py. DoRA's magnitudes too are the norms of what NF4 holds."""
    data = examples.load_examples(tmp_path / "data", examples.random_examples(8, seed=4))
    lora = LoraSettings(rank=4, alpha=8, dora=dora)
    eager_model = eager(dequantized)
    adapter = reference.attach(llama, lora)
    try:
        assert_equal((llama, adapter), (eager_model, reference.attach(eager_model, lora)), data, 1e-5)
    finally:
        adapters.detach(adapter)


@pytest.mark.parametrize("dora", [False, True])
def test_a_run_equals_one_on_the_dequantized_base(
    llama: PreTrainedModel, llama_directory: Path, dequantized: Path, tmp_path: Path, dora: bool
) -> None:
    lora = LoraSettings(rank=4, alpha=8, dora=dora)
    plain = base_model.load(dequantized, device="cpu", dtype="float32", tick=lambda: None)
    runs = (
        Recorder().run(examples.start(tmp_path, llama_directory, spec(lora=lora), run="quantized"), llama),
        Recorder().run(examples.start(tmp_path, dequantized, examples.spec(lora=lora), run="plain"), plain),
    )
    losses = [[step.loss for step in steps(events)] for events in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_leaves_the_base_untouched(llama_directory: Path, tmp_path: Path, dtype: Any) -> None:
    model = load(llama_directory, dtype)
    before = checksum(model)
    execution = Execution(device="cpu", dtype=dtype, token_budget=96, num_threads=1)
    Recorder().run(examples.start(tmp_path, llama_directory, spec(n_epochs=1, execution=execution)), model)
    assert checksum(model) == before
    adapter = adapters.attach(model, LoraSettings(rank=4), seed=1)
    assert {value.dtype for value in adapters.parameters(adapter).values()} == {torch.float32}
    adapters.detach(adapter)
    assert checksum(model) == before


@pytest.mark.parametrize("step", [4, 6])
def test_resume_equals_uninterrupted(
    whole: list[Event], llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, step: int
) -> None:
    start = examples.start(tmp_path, llama_directory, spec(), resume_directory=checkpoints(whole)[step])
    resumed = Recorder().run(start, llama)
    rest = [event for event in comparable(whole[1:]) if event["step"] > step or event["type"] == "finished"]
    assert comparable(resumed[1:]) == rest


def test_warm_equals_cold_and_another_quantization_is_another_base(
    trainer: TrainerProcess, whole: list[Event], llama_directory: Path, tmp_path: Path
) -> None:
    cold = trainer.run(examples.start(tmp_path, llama_directory, spec(), run="cold"))
    warm = trainer.run(examples.start(tmp_path, llama_directory, spec(), run="warm"))
    plain = trainer.run(examples.start(tmp_path, llama_directory, examples.spec(), run="plain"))
    assert comparable(cold) == comparable(whole)
    assert comparable(warm) == comparable(cold)
    assert comparable(plain) != comparable(cold)
    assert isinstance(warm[-1], Finished)
    assert isinstance(cold[-1], Finished)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (Path(warm[-1].directory) / name).read_bytes() == (Path(cold[-1].directory) / name).read_bytes()
    card = (Path(warm[-1].directory) / "README.md").read_text()
    assert "| Base held in | nf4 (QLoRA) |" in card
    assert '"quantization": "nf4"' in card


def test_bfloat16_agrees_with_float32(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    """A random tiny base: rounding to 8 bits of fraction moves a loss by 2 % at most."""
    data = examples.load_examples(tmp_path / "probe", examples.random_examples(4, seed=5))
    batch = pack(data, [0, 1, 2, 3])
    losses = [sft.evaluate(model.eval(), batch).mean_loss for model in (llama, load(llama_directory, "bfloat16"))]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_without_bitsandbytes_nf4_is_refused(
    llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(TrainError, match="not installed") as caught:
        load(llama_directory)
    assert (caught.value.code, caught.value.param) == ("quantization_unavailable", "hone.quantization")


def test_weights_that_are_not_finite_are_refused(llama_directory: Path, tmp_path: Path) -> None:
    weights = load_file(llama_directory / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3] = float("nan")
    (tmp_path / "config.json").write_bytes((llama_directory / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainError, match="up_proj") as caught:
        load(tmp_path)
    assert caught.value.code == "base_model_not_finite"


def test_only_runs_in_nf4_import_bitsandbytes(llama_directory: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from worker import trainer
trainer._import_peft()
from worker.contract.spec import LoraSettings
from worker.engine import adapters, base_model
model = base_model.load(Path({str(llama_directory)!r}), device="cpu", dtype="float32", tick=lambda: None)
adapters.detach(adapters.attach(model, LoraSettings(), seed=0))
assert "bitsandbytes" not in sys.modules
assert __import__("importlib.util").util.find_spec("bitsandbytes") is not None
"""
    subprocess.run([sys.executable, "-c", code], check=True)
