"""Systems that train the same steps from the same adapter, each in a process of its own, taking turns.

A contest is a directory: `contest.json`, the base, the initial adapter, the data, and `steps.json`, which says
what each step takes. That is written when TRL, which is started first, has prepared its data: where it packs, the
packing decides which examples come together.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from benchmarks import presets, runs
from worker.contract.spec import LoraSettings
from worker.engine import adapters, execution

REPOSITORY = Path(__file__).resolve().parents[1]
LORA = LoraSettings(rank=16, alpha=32)
System = Literal["ours", "trl", "loop"]


@dataclass(frozen=True)
class Contest:
    """`longest` is the most tokens of a sequence, and of a row that TRL packs."""

    method: Literal["supervised", "dpo"]
    preset: str
    dtype: Literal["float32", "bfloat16"]
    threads: int
    steps: int
    batch_size: int
    longest: int
    packing: bool = False  # TRL's
    rows_a_pass: int = 1  # of TRL's packed rows: joined in one pass, or one after the other
    checkpointing: bool = False  # TRL's
    has_loop: bool = True  # it pads: where products are emulated, a step of it takes minutes

    def save(self, directory: Path) -> None:
        (directory / "contest.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, directory: Path) -> "Contest":
        return cls(**json.loads((directory / "contest.json").read_text()))


@dataclass(frozen=True)
class Turn:
    """One optimizer step of one system, data and all; `peak_bytes` is of its process up to now."""

    loss: float
    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int


def prepare(directory: Path, contest: Contest, data: Sequence[Any]) -> None:
    """Write all files of the contest but `steps.json`. `data` are examples, or pairs for DPO."""
    base = presets.build_preset(contest.preset, directory / "base", dtype=getattr(torch, contest.dtype))
    adapter = adapters.attach(AutoModelForCausalLM.from_pretrained(base), LORA, seed=0)
    adapters.save(adapter, directory / "initial", base_id="benchmark")
    (directory / "data.json").write_text(json.dumps(data))
    contest.save(directory)


class Contestant:
    """A system's process: `python -m benchmarks.contestant SYSTEM DIRECTORY`, spoken to in lines."""

    def __init__(self, system: System, directory: Path, threads: int) -> None:
        self.system = system
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contestant", system, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(directory / f"{system}.log").open("wb"),
            cwd=REPOSITORY,
            env=_environment(threads),
        )
        self._log = directory / f"{system}.log"
        self.idle_bytes: int = self._read()["idle_bytes"]

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def take_turn(self) -> Turn:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return Turn(**self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.system} failed:\n{self._log.read_text()[-4000:]}")
        return json.loads(line)


@contextmanager
def contestants(directory: Path, contest: Contest) -> Iterator[dict[System, Contestant]]:
    """All of them, loaded and waiting for their first turn. TRL comes first, for it writes `steps.json`."""
    with ExitStack() as stack:
        order: tuple[System, ...] = ("trl", "ours", "loop") if contest.has_loop else ("trl", "ours")
        yield {system: stack.enter_context(Contestant(system, directory, contest.threads)) for system in order}


def steps_of(directory: Path) -> list[list[int]]:
    """The examples or pairs of each step, as numbers into the data."""
    return json.loads((directory / "steps.json").read_text())


def our_form(contest: Contest) -> execution.Form:
    """What our workers hold a base of the contest's dtype in and compute in, on this machine; the others emulate."""
    if contest.dtype == "bfloat16" and not execution.cpu_computes_in_bfloat16():
        return execution.Form("cpu", "float32", "bfloat16")
    return execution.Form("cpu", contest.dtype, None)


def _environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def resident_bytes() -> int:
    return runs.status_bytes(os.getpid(), "VmRSS")


def peak_bytes() -> int:
    return runs.status_bytes(os.getpid(), "VmHWM")
