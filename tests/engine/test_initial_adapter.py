"""Runs that begin with an adapter made before."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.engine import examples, reference
from tests.engine.test_run import Recorder, checkpoints, steps
from tests.engine.trainer_process import comparable
from tests.tiny import Family
from worker.contract.errors import TrainError
from worker.contract.events import Event, Finished, Start
from worker.contract.spec import LoraSettings
from worker.engine import adapters

LORA = LoraSettings(rank=4, alpha=8, dropout=0.1)


@pytest.fixture(scope="module")
def llama(load_base: Callable[[Family], PreTrainedModel]) -> PreTrainedModel:
    return load_base("llama")


@pytest.fixture
def given(llama: PreTrainedModel, tmp_path: Path) -> Path:
    adapter = reference.attach(llama, LORA)
    adapters.save(adapter, tmp_path / "given", base_id="tiny/base")
    adapters.detach(adapter)
    return tmp_path / "given"


@pytest.fixture
def begin(base_directories: dict[Family, Path], tmp_path: Path, given: Path) -> Callable[..., Start]:
    def begin(run: str = "run", resume_directory: str | None = None, **changes: Any) -> Start:
        spec = examples.spec(**{"initial_adapter": "ft:tiny", "lora": LORA, **changes})
        made = examples.start(tmp_path, base_directories["llama"], spec, run=run, resume_directory=resume_directory)
        return made.model_copy(update={"initial_adapter_directory": str(given)})

    return begin


def result(events: list[Event]) -> dict[str, torch.Tensor]:
    assert isinstance(events[-1], Finished)
    return load_file(Path(events[-1].directory) / "adapter_model.safetensors")


def test_it_begins_where_the_adapter_is(
    llama: PreTrainedModel, begin: Callable[..., Start], base_directories: dict[Family, Path], tmp_path: Path
) -> None:
    continued = Recorder().run(begin(n_epochs=1), llama)
    fresh_start = examples.start(tmp_path, base_directories["llama"], examples.spec(n_epochs=1), run="fresh")
    fresh = Recorder().run(fresh_start, llama)
    assert abs(steps(continued)[0].loss - steps(fresh)[0].loss) > 0.01
    # The first step moves each weight by about the rate, so what the run made is near what it was given.
    before = load_file(tmp_path / "given" / "adapter_model.safetensors")
    assert all((value - before[name]).abs().max() < 0.05 for name, value in result(continued).items())


def test_a_checkpoint_goes_before_the_initial_adapter(llama: PreTrainedModel, begin: Callable[..., Start]) -> None:
    whole = Recorder().run(begin("whole"), llama)
    resumed = Recorder().run(begin("resumed", resume_directory=checkpoints(whole)[4]), llama)
    assert comparable(list(steps(resumed))) == comparable(list(steps(whole)))[4:]
    assert all(torch.equal(value, result(whole)[name]) for name, value in result(resumed).items())


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (LoraSettings(rank=2, alpha=8), "its r is 4, not 2"),
        (LoraSettings(rank=4, alpha=4), "its lora_alpha is 8, not 4"),
        (LoraSettings(rank=4, alpha=8, rslora=True), "its use_rslora is False, not True"),
        (LoraSettings(rank=4, alpha=8, dora=True), "its use_dora is False, not True"),
        (LoraSettings(rank=4, alpha=8, target_modules=("q_proj",)), "which this run does not train"),
    ],
)
def test_an_adapter_of_other_settings_is_refused(
    llama: PreTrainedModel, begin: Callable[..., Start], lora: LoraSettings, words: str
) -> None:
    with pytest.raises(TrainError, match=f"cannot continue from ft:tiny: .*{words}") as caught:
        Recorder().run(begin(lora=lora), llama)
    assert (caught.value.code, caught.value.param) == ("initial_adapter_unusable", "model")
    assert not any("lora" in name for name, _ in llama.named_parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "not a LoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, "its modules_to_save is"),
        ({"rank_pattern": {"q_proj": 8}}, "its rank_pattern is"),
        ({"bias": "all"}, "its bias is all, not none"),
        ({"init_lora_weights": "pissa"}, "its init_lora_weights is pissa"),
        ({"invented_later": 3}, "its invented_later is 3, not None"),
    ],
)
def test_an_adapter_that_computes_something_else_is_refused(
    llama: PreTrainedModel, begin: Callable[..., Start], given: Path, changes: dict[str, Any], words: str
) -> None:
    config = json.loads((given / "adapter_config.json").read_text())
    (given / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(TrainError, match=words):
        Recorder().run(begin(), llama)


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(NAME), f"it has no {NAME}"),
        (lambda tensors: tensors.update({NAME: torch.zeros(4, 32)}), "is .4, 32., not .4, 64."),
        (lambda tensors: tensors[NAME].fill_(torch.nan), "not numbers"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    llama: PreTrainedModel,
    begin: Callable[..., Start],
    given: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    words: str,
) -> None:
    tensors = load_file(given / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, given / "adapter_model.safetensors")
    with pytest.raises(TrainError, match=words):
        Recorder().run(begin(), llama)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")])
def test_a_damaged_directory_is_refused(
    llama: PreTrainedModel, begin: Callable[..., Start], given: Path, name: str, damage: Callable[[Path], object]
) -> None:
    damage(given / name)
    with pytest.raises(TrainError, match="not a whole PEFT directory"):
        Recorder().run(begin(), llama)
