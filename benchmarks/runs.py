"""Real runs for benchmarks: a spec and its files, and the trainer's process with its peak of memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine.trainer_process import TrainerProcess
from worker.contract.events import Event, Failed, Start, Tick
from worker.contract.spec import BaseModelRef, LoraSettings, OptimizerSettings, TrainSpec
from worker.data import pair_file, token_file

OPTIMIZER = OptimizerSettings(learning_rate=2e-4, schedule="constant")


def spec(name: str, **changes: Any) -> TrainSpec:
    """LoRA of rank 16 on all linear layers, 16 examples a step, one epoch, no evaluation on the way."""
    settings: dict[str, Any] = {
        "base": BaseModelRef(id=f"benchmark/{name}", revision="0"),
        "seed": 1,
        "n_epochs": 1,
        "batch_size": 16,
        "learning_rate_multiplier": 1.0,
        "max_sequence_tokens": 1024,
        "lora": LoraSettings(rank=16, alpha=32),
        "optimizer": OptimizerSettings(learning_rate=2e-4),
        "eval_interval_steps": 10_000,
        "checkpoint_interval_steps": 10_000,
    }
    return TrainSpec(**{**settings, **changes})


def start(directory: Path, base: Path, train_spec: TrainSpec, examples: Sequence[Any], *, run: str = "run") -> Start:
    """A start whose files lie under `directory`; the examples are pairs where the spec's method takes pairs."""
    work_directory = directory / run
    work_directory.mkdir(parents=True)
    write = pair_file.write if train_spec.method == "dpo" else token_file.write
    write(work_directory / "training", examples)
    return Start(
        run=run,
        spec=train_spec,
        base_directory=str(base),
        training_data=str(work_directory / "training"),
        validation_data=None,
        work_directory=str(work_directory),
        resume_directory=None,
        card={},
    )


@dataclass
class Watched:
    """A run's events but the ticks, and its peak of resident memory above that of an idle trainer."""

    events: Sequence[Event]
    idle_bytes: int
    peak_bytes: int

    @property
    def above_idle(self) -> int:
        return self.peak_bytes - self.idle_bytes


@contextmanager
def idle_trainer() -> Iterator[TrainerProcess]:
    """A trainer that has done its imports."""
    with TrainerProcess() as trainer:
        trainer.wait_until_ready()
        yield trainer


def watch(given: Start) -> Watched:
    """Carry a run out in a fresh trainer. Ends the benchmark if it fails."""
    with idle_trainer() as trainer:
        pid = trainer.process.pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak of the imports
        idle = status_bytes(pid, "VmRSS")
        trainer.send(given)
        events = [event for event in trainer.events() if not isinstance(event, Tick)]
        last = events[-1]
        if isinstance(last, Failed):
            raise SystemExit(f"the run failed: {last.message}")
        return Watched(events, idle, status_bytes(pid, "VmHWM"))


def status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
