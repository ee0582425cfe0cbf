"""The trainer as a process: resident, killed, resumed, and gone with its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engine import examples
from tests.engine.trainer_process import REPOSITORY, TrainerProcess, comparable, trainer_command
from tests.tiny import Family
from worker.contract.errors import Blame
from worker.contract.events import Checkpoint, Event, Failed, Finished, Started, Step, Stop, Stopped, Tick
from worker.contract.spec import BaseModelRef


@pytest.fixture(scope="module")
def base_directory(base_directories: dict[Family, Path]) -> Path:
    return base_directories["llama"]


@pytest.fixture(scope="module")
def cold(trainer: TrainerProcess, tmp_path_factory: pytest.TempPathFactory, base_directory: Path) -> list[Event]:
    """The first run of the trainer's life on this base."""
    return trainer.run(examples.start(tmp_path_factory.mktemp("cold"), base_directory, examples.spec()))


def test_a_warm_run_equals_the_cold_one(
    trainer: TrainerProcess, cold: list[Event], base_directory: Path, tmp_path: Path
) -> None:
    assert isinstance(cold[-1], Finished)
    warm = trainer.run(examples.start(tmp_path, base_directory, examples.spec()))
    assert comparable(warm) == comparable(cold)
    assert isinstance(warm[-1], Finished)
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (Path(warm[-1].directory) / name).read_bytes() == (Path(cold[-1].directory) / name).read_bytes()


def test_a_run_between_does_not_change_the_next(
    trainer: TrainerProcess, cold: list[Event], base_directories: dict[Family, Path], tmp_path: Path
) -> None:
    other = examples.spec(base=BaseModelRef(id="tiny/other", revision="1"), seed=99, n_epochs=1)
    assert isinstance(
        trainer.run(examples.start(tmp_path, base_directories["qwen2"], other, run="other"))[-1], Finished
    )
    again = trainer.run(examples.start(tmp_path, base_directories["llama"], examples.spec(), run="again"))
    assert comparable(again) == comparable(cold)


def test_killed_in_a_step_and_resumed_elsewhere_the_steps_are_the_same(
    trainer: TrainerProcess, cold: list[Event], base_directory: Path, tmp_path: Path
) -> None:
    before: list[Event] = []
    with TrainerProcess() as process:
        process.send(examples.start(tmp_path, base_directory, examples.spec(), run="killed"))
        for event in process.events():
            before.append(event)
            if isinstance(event, Tick) and any(isinstance(e, Step) and e.step == 9 for e in before):
                os.killpg(process.process.pid, signal.SIGKILL)
                break
        assert process.process.wait() == -signal.SIGKILL
    last = [event for event in before if isinstance(event, Checkpoint)][-1]
    assert last.step == 8
    resumed = trainer.run(
        examples.start(tmp_path, base_directory, examples.spec(), run="resumed", resume_directory=last.directory)
    )
    taken = {event.step: event for event in before if isinstance(event, Step)}
    repeated = {event.step: event for event in resumed if isinstance(event, Step)}
    assert sorted(repeated) == [9, 10, 11, 12]
    assert comparable([repeated[9]]) == comparable([taken[9]])
    whole = [event for event in cold if isinstance(event, Step)]
    assert comparable(list({**taken, **repeated}.values())) == comparable(list(whole))


def test_an_execution_that_the_spec_leaves_open_is_chosen_and_kept(
    trainer: TrainerProcess, base_directory: Path, tmp_path: Path
) -> None:
    spec = examples.spec(execution=None, n_epochs=1)
    first = trainer.run(examples.start(tmp_path, base_directory, spec, run="first"))
    started = first[0]
    assert isinstance(started, Started)
    assert (started.execution.device, started.execution.dtype, started.execution.num_threads) == ("cpu", "float32", 1)
    assert started.execution.token_budget == 2048
    saved = next(event.directory for event in first if isinstance(event, Checkpoint))
    resumed = trainer.run(examples.start(tmp_path, base_directory, spec, run="second", resume_directory=saved))[0]
    assert isinstance(resumed, Started)
    assert resumed.execution == started.execution


def test_stop_without_a_checkpoint(trainer: TrainerProcess, base_directory: Path, tmp_path: Path) -> None:
    start = examples.start(tmp_path, base_directory, examples.spec(n_epochs=50, checkpoint_interval_steps=1000))
    trainer.send(start)
    seen: list[Event] = []
    for event in trainer.events():
        seen.append(event)
        if isinstance(event, Step) and event.step == 1:
            trainer.send(Stop(run=start.run, checkpoint=False))
    assert isinstance(seen[-1], Stopped)
    assert seen[-1].step < 300


def test_stop_with_a_checkpoint(trainer: TrainerProcess, base_directory: Path, tmp_path: Path) -> None:
    start = examples.start(tmp_path, base_directory, examples.spec(n_epochs=50, checkpoint_interval_steps=1000))
    trainer.send(start)
    seen: list[Event] = []
    for event in trainer.events():
        if not isinstance(event, Tick):
            seen.append(event)
        if isinstance(event, Step) and event.step == 1:
            trainer.send(Stop(run=start.run, checkpoint=True))
    assert isinstance(seen[-1], Stopped)
    assert isinstance(seen[-2], Checkpoint)
    assert seen[-2].step == seen[-1].step < 300


def test_stop_while_the_base_loads_and_a_late_stop(
    trainer: TrainerProcess, base_directories: dict[Family, Path], tmp_path: Path
) -> None:
    spec = examples.spec(base=BaseModelRef(id="tiny/third", revision="1"), n_epochs=1)
    start = examples.start(tmp_path, base_directories["qwen2"], spec, run="stopped")
    trainer.send(start)
    trainer.send(Stop(run="stopped", checkpoint=False))
    events = [event for event in trainer.events() if not isinstance(event, Tick)]
    assert events == [Stopped(run="stopped", step=0)]
    trainer.send(Stop(run="stopped", checkpoint=False))  # late: that run is over
    assert isinstance(trainer.run(start)[-1], Finished)


def test_a_refused_run_fails_and_the_next_goes_on(
    trainer: TrainerProcess, cold: list[Event], base_directory: Path, tmp_path: Path
) -> None:
    bad = examples.start(tmp_path, base_directory, examples.spec(max_sequence_tokens=8), run="bad")
    failed = trainer.run(bad)[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param, failed.blame) == ("invalid_token_file", "training_file", Blame.INTERNAL)
    missing = examples.start(
        tmp_path, tmp_path / "nowhere", examples.spec(seed=1, base=BaseModelRef(id="x", revision="1"))
    )
    failed = trainer.run(missing)[-1]
    assert isinstance(failed, Failed)
    assert failed.code == "base_model_unreadable"
    assert comparable(trainer.run(examples.start(tmp_path, base_directory, examples.spec(), run="good"))) == comparable(
        cold
    )


def test_an_unexpected_error_is_internal_and_its_detail_stays_in_the_log(
    trainer: TrainerProcess, cold: list[Event], base_directory: Path, tmp_path: Path
) -> None:
    start = examples.start(tmp_path, base_directory, examples.spec(), run="unlucky")
    (Path(start.work_directory) / "checkpoints").write_text("a file where a directory must be")
    failed = trainer.run(start)[-1]
    assert failed == Failed(
        run="unlucky",
        code="internal_error",
        message="Training failed by an internal error.",
        param=None,
        blame=Blame.INTERNAL,
    )
    assert comparable(trainer.run(examples.start(tmp_path, base_directory, examples.spec(), run="next"))) == comparable(
        cold
    )


def test_it_dies_when_the_command_stream_ends_in_the_middle_of_a_run(base_directory: Path, tmp_path: Path) -> None:
    with TrainerProcess() as process:
        process.send(examples.start(tmp_path, base_directory, examples.spec(n_epochs=50)))
        assert next(event for event in process.events() if isinstance(event, Step))
        process.hang_up()
        assert process.process.wait(timeout=10) == -signal.SIGKILL


def test_it_dies_when_the_command_stream_ends_before_it_is_ready() -> None:
    with TrainerProcess() as process:
        process.hang_up()
        assert process.process.wait(timeout=30) == -signal.SIGKILL


def test_a_line_that_is_no_command_ends_it() -> None:
    with TrainerProcess() as process:
        process.send_line(b"not a command\n")
        assert process.process.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to be killed with its parent")
def test_it_dies_with_its_parent_though_the_command_stream_stays_open(tmp_path: Path) -> None:
    command_read, command_write = os.pipe()
    event_read, event_write = os.pipe()
    command = trainer_command(command_read, event_write)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            f"child = subprocess.Popen({command!r}, pass_fds=({command_read}, {event_write}), start_new_session=True)\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(600)",
        ],
        pass_fds=(command_read, event_write),
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    os.close(command_read)
    os.close(event_write)
    try:
        assert parent.stdout is not None
        trainer_pid = int(parent.stdout.readline())
        assert os.read(event_read, 1)  # it is ready
        parent.kill()
        parent.wait()
        while chunk := os.read(event_read, 4096):  # until its end of the pipe is closed
            assert chunk
        deadline = time.monotonic() + 10
        while Path(f"/proc/{trainer_pid}/stat").exists() and time.monotonic() < deadline:
            if Path(f"/proc/{trainer_pid}/stat").read_text().split()[2] == "Z":
                break  # dead, and waiting for a reaper
            time.sleep(0.01)
        else:
            assert not Path(f"/proc/{trainer_pid}").exists()
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
        os.close(command_write)
        os.close(event_read)
