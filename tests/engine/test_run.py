"""One run in this process: its events, its result, and what it refuses."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.engine import examples
from tests.engine.trainer_process import comparable
from tests.tiny import Family
from worker.contract.errors import Blame, TrainError
from worker.contract.events import Checkpoint, Evaluation, Event, Finished, Start, Started, Step, Stopped, Tick
from worker.contract.spec import Execution, LoraSettings, OptimizerSettings
from worker.engine import adapters, checkpoint, sft
from worker.engine.packing import pack
from worker.engine.run import StopRequest, carry_out

# PEFT asks transformers under a name that it has since changed.
plain_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Recorder:
    """Keeps a run's events, and asks it to stop where a test says so."""

    def __init__(self, stop_when: Callable[[list[Event]], StopRequest] = lambda _events: None) -> None:
        self.events: list[Event] = []
        self._stop_when = stop_when

    def run(self, start: Start, model: PreTrainedModel) -> list[Event]:
        """All events but the ticks."""
        assert start.spec.execution is not None
        last = carry_out(
            start,
            model,
            start.spec.execution,
            emit=self.events.append,
            stop_request=lambda: self._stop_when(self.events),
        )
        return [*(event for event in self.events if not isinstance(event, Tick)), last]


def steps(events: list[Event]) -> list[Step]:
    return [event for event in events if isinstance(event, Step)]


def checkpoints(events: list[Event]) -> dict[int, str]:
    return {event.step: event.directory for event in events if isinstance(event, Checkpoint)}


@pytest.fixture
def base_directory(base_directories: dict[Family, Path], family: Family) -> Path:
    return base_directories[family]


@pytest.fixture(scope="module")
def llama(load_base: Callable[[Family], PreTrainedModel]) -> PreTrainedModel:
    return load_base("llama")


@pytest.fixture(scope="module")
def llama_directory(base_directories: dict[Family, Path]) -> Path:
    return base_directories["llama"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path, llama: PreTrainedModel) -> list[Event]:
    """An uninterrupted run with dropout."""
    return Recorder().run(examples.start(tmp_path_factory.mktemp("whole"), llama_directory, examples.spec()), llama)


def test_events_come_in_order(whole: list[Event]) -> None:
    def name(event: Event) -> str:
        kind = event.kind if isinstance(event, Evaluation) else event.type
        return f"{kind} {event.step}" if isinstance(event, Step | Evaluation | Checkpoint | Finished) else kind

    assert [name(event) for event in whole] == [
        "started",
        *("step 1", "step 2", "valid 3", "step 3", "step 4", "checkpoint 4", "step 5"),
        *("valid 6", "full_valid 6", "step 6", "checkpoint 6"),
        *("step 7", "step 8", "checkpoint 8", "valid 9", "step 9", "step 10", "step 11"),
        *("valid 12", "full_valid 12", "step 12", "checkpoint 12", "finished 12"),
    ]
    assert [event.epoch_end for event in whole if isinstance(event, Checkpoint)] == [False, True, False, True]
    started = whole[0]
    assert isinstance(started, Started)
    assert (started.total_steps, started.resumed_from_step) == (12, 0)
    assert [step.epoch for step in steps(whole)] == [1] * 6 + [2] * 6


def test_a_run_leaves_the_base_untouched(base: PreTrainedModel, base_directory: Path, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    Recorder().run(examples.start(tmp_path, base_directory, examples.spec(n_epochs=1)), base)
    after = base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_large_validation_set_is_read_whole_only_at_the_end(
    llama: PreTrainedModel, llama_directory: Path, tmp_path: Path
) -> None:
    start = examples.start(tmp_path, llama_directory, examples.spec(eval_examples=1))
    examples.write_examples(Path(start.validation_data or ""), examples.random_examples(9, seed=2))
    events = Recorder().run(start, llama)
    assert [event.step for event in events if isinstance(event, Evaluation) and event.kind == "full_valid"] == [12]


# A plain padded loop (transformers eager, its own AdamW and schedule) gave these losses to 1e-6.
GOLDEN_LOSSES: dict[Family, list[float]] = {
    "llama": [6.532179, 6.533055, 6.460382, 6.479487, 6.492971, 6.561592],
    "qwen2": [6.681843, 6.568417, 6.463612, 6.440678, 6.601000, 6.667848],
}


def test_golden_losses(base: PreTrainedModel, base_directory: Path, family: Family, tmp_path: Path) -> None:
    spec = examples.spec(lora=LoraSettings(rank=4, alpha=8), n_epochs=1)
    losses = [step.loss for step in steps(Recorder().run(examples.start(tmp_path, base_directory, spec), base))]
    assert losses == pytest.approx(GOLDEN_LOSSES[family], abs=1e-4)


def test_any_token_budget_gives_the_same_losses(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    found = []
    for budget in (1, 64, 4096):
        execution = Execution(device="cpu", dtype="float32", token_budget=budget, num_threads=1)
        spec = examples.spec(lora=LoraSettings(rank=4, alpha=8), execution=execution)
        start = examples.start(tmp_path, llama_directory, spec, run=f"budget-{budget}")
        found.append([step.loss for step in steps(Recorder().run(start, llama))])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_training_learns(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    spec = examples.spec(n_epochs=25, optimizer=OptimizerSettings(learning_rate=0.02), checkpoint_interval_steps=1000)
    start = examples.start(tmp_path, llama_directory, spec, examples=examples.random_examples(4, seed=1))
    losses = [step.loss for step in steps(Recorder().run(start, llama))]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("step", [4, 6, 8, 12])
def test_resume_equals_uninterrupted(
    whole: list[Event], llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, step: int
) -> None:
    directory = checkpoints(whole)[step]
    start = examples.start(tmp_path, llama_directory, examples.spec(), resume_directory=directory)
    resumed = Recorder().run(start, llama)
    started = resumed[0]
    assert isinstance(started, Started)
    assert started.resumed_from_step == step
    rest = [event for event in comparable(whole[1:]) if event["step"] > step or event["type"] == "finished"]
    assert comparable(resumed[1:]) == rest
    one, other = (load_file(Path(events[-1].directory) / "adapter_model.safetensors") for events in (whole, resumed))  # pyright: ignore[reportAttributeAccessIssue]
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stop_step", [1, 5, 9])
def test_stopping_with_a_checkpoint_and_resuming_changes_nothing(
    whole: list[Event], llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, stop_step: int
) -> None:
    recorder = Recorder(lambda events: "checkpoint" if len(steps(events)) >= stop_step else None)
    first = recorder.run(examples.start(tmp_path, llama_directory, examples.spec(), run="first"), llama)
    assert isinstance(first[-1], Stopped)
    assert first[-1].step == stop_step
    assert isinstance(first[-2], Checkpoint)
    again = examples.start(
        tmp_path, llama_directory, examples.spec(), run="second", resume_directory=first[-2].directory
    )
    second = Recorder().run(again, llama)
    assert comparable([*steps(first), *steps(second)]) == comparable(list(steps(whole)))


def test_stopping_with_a_checkpoint_before_any_step_saves_nothing(
    llama: PreTrainedModel, llama_directory: Path, tmp_path: Path
) -> None:
    events = Recorder(lambda _: "checkpoint").run(examples.start(tmp_path, llama_directory, examples.spec()), llama)
    assert [event.type for event in events] == ["started", "stopped"]


def test_stopping_now_ends_between_micro_batches(llama: PreTrainedModel, llama_directory: Path, tmp_path: Path) -> None:
    execution = Execution(device="cpu", dtype="float32", token_budget=1, num_threads=1)
    recorder = Recorder(lambda events: "now" if len([e for e in events if isinstance(e, Tick)]) >= 6 else None)
    start = examples.start(tmp_path, llama_directory, examples.spec(execution=execution))
    events = recorder.run(start, llama)
    assert [event.type for event in events] == ["started", "step", "stopped"]
    assert isinstance(events[-1], Stopped)
    assert events[-1].step == 1
    assert not (Path(start.work_directory) / "checkpoints").exists()
    assert not any("lora" in name for name, _ in llama.named_parameters())


@plain_peft
def test_the_exported_adapter_has_the_trainers_logits(
    base: PreTrainedModel, base_directory: Path, tmp_path: Path
) -> None:
    start = examples.start(tmp_path, base_directory, examples.spec())
    finished = Recorder().run(start, base)[-1]
    assert isinstance(finished, Finished)
    result = Path(finished.directory)

    data = examples.load_examples(tmp_path / "probe", examples.random_examples(2, seed=5))
    adapter = adapters.attach(base, start.spec.lora, seed=0)
    adapters.restore(adapter, result)
    base.eval()
    with torch.no_grad():
        ours_TV = base.get_output_embeddings()(sft.hidden_states(base, pack(data, [0, 1])))  # pyright: ignore[reportOptionalCall]
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_directory), result).eval()
        theirs = [plain(input_ids=torch.from_numpy(data.example(row)[0]).long()[None]).logits[0] for row in (0, 1)]
    torch.testing.assert_close(ours_TV, torch.cat(theirs), rtol=0, atol=1e-5)

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert AutoTokenizer.from_pretrained(result).apply_chat_template(messages) == AutoTokenizer.from_pretrained(
        base_directory
    ).apply_chat_template(messages)


def test_the_card_says_what_ran(whole: list[Event]) -> None:
    finished = whole[-1]
    assert isinstance(finished, Finished)
    card = (Path(finished.directory) / "README.md").read_text()
    assert card.startswith('---\nbase_model: "tiny/base"\n')
    assert "| Training file | sha256:0123 |" in card
    assert "| Base revision | 0001 |" in card
    assert f"| Training loss, last step | {steps(whole)[-1].loss:.6f} |" in card
    settings = card.split("```json\n")[1].split("```")[0]
    assert json.loads(settings) == examples.spec().model_dump(mode="json")


@plain_peft
def test_checkpoints_load_with_plain_peft(whole: list[Event], llama_directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    adapter = PeftModel.from_pretrained(model, Path(checkpoints(whole)[6]) / "adapter")
    assert adapter.peft_config["default"].base_model_name_or_path == "tiny/base"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 8}, "its spec differs in seed"),
        ({"batch_size": 5}, "its spec differs in batch_size"),
        ({"optimizer": OptimizerSettings(learning_rate=1e-3)}, "its spec differs in optimizer"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    whole: list[Event],
    llama: PreTrainedModel,
    llama_directory: Path,
    tmp_path: Path,
    changes: dict[str, object],
    words: str,
) -> None:
    spec = examples.spec(**changes)
    start = examples.start(tmp_path, llama_directory, spec, resume_directory=checkpoints(whole)[6])
    with pytest.raises(TrainError, match=words) as caught:
        Recorder().run(start, llama)
    assert caught.value.code == "checkpoint_mismatch"


def test_a_checkpoint_of_other_data_is_refused(
    whole: list[Event], llama: PreTrainedModel, llama_directory: Path, tmp_path: Path
) -> None:
    start = examples.start(
        tmp_path,
        llama_directory,
        examples.spec(),
        resume_directory=checkpoints(whole)[6],
        examples=examples.random_examples(21, seed=99),
    )
    with pytest.raises(TrainError, match="other training examples"):
        Recorder().run(start, llama)


@pytest.mark.parametrize(
    "missing", ["state/state.json", "state/optimizer.safetensors", "adapter/adapter_model.safetensors"]
)
def test_a_checkpoint_with_a_missing_file_is_refused(
    whole: list[Event], llama: PreTrainedModel, llama_directory: Path, tmp_path: Path, missing: str
) -> None:
    copy = tmp_path / "checkpoint"
    source = Path(checkpoints(whole)[4])
    for path in source.rglob("*"):
        name = str(path.relative_to(source))
        if path.is_file() and name != missing:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(path.read_bytes())
    start = examples.start(tmp_path, llama_directory, examples.spec(), resume_directory=str(copy))
    with pytest.raises(TrainError) as caught:
        Recorder().run(start, llama)
    assert (caught.value.code, caught.value.blame) == ("checkpoint_unreadable", Blame.INTERNAL)
    assert not any("lora" in name for name, _ in llama.named_parameters())


def test_a_state_of_another_version_is_refused(whole: list[Event], tmp_path: Path) -> None:
    state = json.loads((Path(checkpoints(whole)[4]) / "state" / "state.json").read_text())
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.json").write_text(json.dumps({**state, "version": 99}))
    with pytest.raises(TrainError) as caught:
        checkpoint.read_state(tmp_path)
    assert caught.value.code == "checkpoint_unreadable"


def test_a_loss_that_is_not_finite_stops_before_the_step(
    load_base: Callable[[Family], PreTrainedModel], llama_directory: Path, tmp_path: Path
) -> None:
    model = load_base("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[511] = math.inf  # pyright: ignore[reportIndexIssue]
    given = [([token % 511 for token in tokens], weights) for tokens, weights in examples.random_examples(8, seed=1)]
    given[3] = ([511] * 5, [0.0, 1.0, 1.0, 1.0, 1.0])
    recorder = Recorder()
    start = examples.start(tmp_path, llama_directory, examples.spec(), examples=given)
    with pytest.raises(TrainError) as caught:
        recorder.run(start, model)
    assert (caught.value.code, caught.value.blame) == ("non_finite_loss", Blame.USER)
    assert len(steps(recorder.events)) <= 1
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert all(math.isfinite(step.loss) for step in steps(recorder.events))
