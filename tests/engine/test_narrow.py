"""A base held in 16 bits and computed in float32: the same weights held in float32 give the same run, bit for bit."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.engine import examples, families, pairs, reference
from tests.engine.test_nf4 import checksum
from tests.engine.test_run import Recorder, checkpoints, steps
from tests.engine.trainer_process import TrainerProcess, comparable
from worker.contract.events import Event, Finished
from worker.contract.spec import BaseModelRef, DpoSettings, Execution, LoraSettings, TrainSpec
from worker.data.token_file import TokenFile
from worker.engine import adapters, base_model, frozen, log_probs, losses, merge, narrow
from worker.engine.nf4 import Nf4Linear

Narrow = Literal["bfloat16", "float16"]
LORA = LoraSettings(rank=4, alpha=8)


def load(directory: Path, weights_dtype: Narrow | None, quantization: Literal["nf4"] | None = None) -> PreTrainedModel:
    return base_model.load(
        directory,
        device="cpu",
        dtype="float32",
        weights_dtype=weights_dtype,
        quantization=quantization,
        tick=lambda: None,
    )


def rounded(directory: Path, dtype: Narrow = "bfloat16") -> Path:
    """The base whose files hold its weights in `dtype`."""
    weights = {name: value.to(getattr(torch, dtype)) for name, value in _weights(directory).items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def spec(weights_dtype: Narrow | None, **changes: Any) -> TrainSpec:
    settings = {"device": "cpu", "dtype": "float32", "token_budget": 96, "num_threads": 1}
    return examples.spec(execution=Execution(**settings, weights_dtype=weights_dtype), **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    return examples.load_examples(tmp_path_factory.mktemp("data") / "data", examples.random_examples(8, seed=4))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied weights and biases, in bfloat16."""
    return rounded(families.build(tmp_path_factory.mktemp("base") / "base", families.configs()["qwen2.5"]))


@pytest.fixture(scope="module")
def model(directory: Path) -> PreTrainedModel:
    return load(directory, "bfloat16")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, directory: Path, model: PreTrainedModel) -> list[Event]:
    start = examples.start(tmp_path_factory.mktemp("whole"), directory, spec("bfloat16", neftune_noise_alpha=5.0))
    return Recorder().run(start, model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", families.NAMES)
def test_every_family_computes_what_it_does_in_float32(
    tmp_path: Path, data: TokenFile, name: str, dtype: Narrow
) -> None:
    directory = rounded(families.build(tmp_path / "base", families.configs()[name]), dtype)
    found = []
    for model in (load(directory, None), load(directory, dtype)):
        for lora in (LORA, LoraSettings(rank=4, alpha=8, dora=True)):
            adapter = reference.attach(model, lora)
            sums = reference.packed(model, data, 40)
            found.append((sums, reference.gradients(adapter, sums.weight)))
            adapters.detach(adapter)
    for wide, held in zip(found[:2], found[2:], strict=True):
        assert held[0] == wide[0]
        assert all(torch.equal(gradient, wide[1][key]) for key, gradient in held[1].items())


@pytest.mark.parametrize("name", ["qwen2.5", "gemma3", "gpt-neox"])
def test_matrices_are_held_in_16_bits_and_what_is_tied_stays_tied(tmp_path: Path, name: str) -> None:
    directory = families.build(tmp_path / "base", families.configs()[name])
    model = load(directory, "bfloat16")
    for key, parameter in model.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if parameter.ndim == 2 else torch.float32), key
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert head is not None
    assert (head.weight is embeddings.weight) == plain.config.tie_word_embeddings
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[key].to(value.dtype)) for key, value in model.state_dict().items())


class _Halved(torch.nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (its name in torch)
        return super().forward(input) / 2


def test_a_matrix_of_a_layer_that_is_not_understood_becomes_float32(directory: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    loaded.get_input_embeddings().__class__ = _Halved
    narrow.hold(loaded)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert loaded.lm_head.weight.dtype == torch.float32
    assert loaded(input_ids=torch.tensor([[3, 4]])).logits.dtype == torch.float32


def test_nf4_has_embeddings_and_head_in_16_bits_and_the_same_results(directory: Path, data: TokenFile) -> None:
    held, wide = load(directory, "bfloat16", "nf4"), load(directory, None, "nf4")
    assert held.get_input_embeddings().weight.dtype == torch.bfloat16
    layer = next(module for module in held.modules() if isinstance(module, Nf4Linear))
    assert layer.weight.dtype == layer.bias.dtype == torch.float32
    found = []
    for model in (held, wide):
        adapter = reference.attach(model, LORA)
        sums = reference.packed(model, data, 40)
        found.append((sums, reference.gradients(adapter, sums.weight)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(gradient, found[1][1][key]) for key, gradient in found[0][1].items())


@pytest.mark.parametrize("changes", [{}, {"lora": LoraSettings(rank=4, dora=True)}, {"method": "dpo"}], ids=str)
def test_a_run_equals_the_one_in_float32_and_leaves_the_base_untouched(
    directory: Path, model: PreTrainedModel, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if changes.get("method") == "dpo":
        changes = {**changes, "dpo": DpoSettings()}
    before = checksum(model)
    runs = []
    bases: dict[Narrow | None, PreTrainedModel] = {"bfloat16": model, None: load(directory, None)}
    for dtype, base in bases.items():
        train_spec = spec(dtype, n_epochs=1, **changes)
        make = pairs.start if train_spec.method == "dpo" else examples.start
        runs.append(Recorder().run(make(tmp_path, directory, train_spec, run=f"in {dtype}"), base))
    assert comparable(list(steps(runs[0]))) == comparable(list(steps(runs[1])))
    assert result(runs[0], "adapter_model.safetensors") == result(runs[1], "adapter_model.safetensors")
    assert checksum(model) == before


def result(events: list[Event], name: str) -> bytes:
    last = events[-1]
    assert isinstance(last, Finished)
    return (Path(last.directory) / name).read_bytes()


@pytest.mark.parametrize("step", [4, 6, 8])
def test_resume_equals_uninterrupted_and_says_what_ran(
    whole: list[Event], directory: Path, model: PreTrainedModel, tmp_path: Path, step: int
) -> None:
    train_spec = spec("bfloat16", neftune_noise_alpha=5.0)
    start = examples.start(tmp_path, directory, train_spec, resume_directory=checkpoints(whole)[step])
    resumed = Recorder().run(start, model)
    rest = [event for event in comparable(whole[1:]) if event["step"] > step or event["type"] == "finished"]
    assert comparable(resumed[1:]) == rest
    assert result(resumed, "adapter_model.safetensors") == result(whole, "adapter_model.safetensors")
    card = result(resumed, "README.md").decode()
    assert "| Base held in | bfloat16, computed in float32 |" in card
    assert '"weights_dtype": "bfloat16"' in card


def test_the_trainer_holds_16_bit_files_so_and_another_form_is_another_base(
    trainer: TrainerProcess, directory: Path, tmp_path: Path
) -> None:
    """What the files hold in 16 bits stays so where nothing is stated; a resume and float32 then give the same."""
    base = BaseModelRef(id="tiny/narrow", revision="0001")
    open_spec = examples.spec(base=base, execution=None, n_epochs=1)
    chosen = trainer.run(examples.start(tmp_path, directory, open_spec, run="chosen"))
    execution = chosen[0].execution  # pyright: ignore[reportAttributeAccessIssue]
    assert (execution.dtype, execution.weights_dtype) == ("float32", "bfloat16")
    in_float32 = execution.model_copy(update={"weights_dtype": None})
    wide_spec = open_spec.model_copy(update={"execution": in_float32})
    wide = trainer.run(examples.start(tmp_path, directory, wide_spec, run="wide"))
    assert comparable(list(steps(wide))) == comparable(list(steps(chosen)))
    middle = checkpoints(chosen)[4]
    resumed = trainer.run(examples.start(tmp_path, directory, open_spec, run="resumed", resume_directory=middle))
    assert resumed[0].execution == execution  # pyright: ignore[reportAttributeAccessIssue]
    assert comparable(list(steps(resumed))) == comparable(list(steps(chosen)))[4:]


def test_an_adapter_merges_into_the_base(whole: list[Event], directory: Path, tmp_path: Path) -> None:
    last = whole[-1]
    assert isinstance(last, Finished)
    merge.merge(directory, Path(last.directory), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_in_blocks_are_those_of_the_wide_weight(
    monkeypatch: pytest.MonkeyPatch, bias: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(frozen, "_BLOCK_WEIGHTS", 7 * 16)
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(16, 50, bias=bias, dtype=dtype).requires_grad_(False)
    if bias:
        layer.bias.data = layer.bias.data.float()
    x = torch.randn(2, 5, 16, generator=generator).requires_grad_()
    gradient = torch.randn(2, 5, 50, generator=generator)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out = frozen.multiply(x, layer)
    assert not kept
    expected = torch.nn.functional.linear(x, layer.weight.float(), layer.bias)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    (found,) = torch.autograd.grad(out, x, gradient)
    torch.testing.assert_close(found, gradient @ layer.weight.float(), rtol=1e-6, atol=1e-5)


def test_the_head_in_blocks_gives_the_same_losses_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "_BLOCK_WEIGHTS", 7 * 16)
    generator = torch.Generator().manual_seed(0)
    head_VH = torch.randn(100, 16, generator=generator).to(torch.bfloat16)
    hidden_TH = torch.randn(40, 16, generator=generator)
    targets_T = torch.randint(100, (40,), generator=generator)
    found = []
    for head in (head_VH, head_VH.float()):
        given_TH = hidden_TH.clone().requires_grad_()
        loss, _ = losses.linear_cross_entropy(
            given_TH, head, None, torch.arange(40), targets_T, torch.ones(40), chunk_rows=16
        )
        log_probs_T = log_probs.linear_log_probs(given_TH, head, None, targets_T, chunk_rows=16)
        found.append([loss, log_probs_T, *torch.autograd.grad(loss - log_probs_T.sum(), given_TH)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)


def test_16_bits_are_for_what_computes_in_float32() -> None:
    with pytest.raises(ValueError, match="compute in float32"):
        Execution(device="cpu", dtype="bfloat16", token_budget=96, num_threads=1, weights_dtype="float16")
