"""A second job on a resident base against the first: `python -m benchmarks.warm_start [--preset ...] [--rounds N]`.

Each round is a fresh `hone serve`: its trainer has done its imports when the first job comes, and holds no base
yet. Measured by the worker's own log: seconds from a job's claim until its first optimizer step begins, for the
job that finds no base and for the next one, with other data, that finds it loaded. The step itself is the same
work for both; it is printed beside. The last line is a JSON object; `ratio` is the second job's time over the
first's, by their medians, and `ratio_with_step` is the same until the first step has been taken.
"""

import argparse
import json
import re
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import presets
from tests import tiny
from tests.e2e.processes import TERMINAL, Installation, Process, rows, wait_for

STEPS = 20
EXAMPLES_A_STEP = 1


@dataclass(frozen=True)
class Timing:
    """Seconds of one job: from claim to first step, of that step, and from POST to success beside all steps."""

    to_first_step: float
    first_step: float
    overhead: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=presets.PRESETS, default="deep")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = presets.build_preset(arguments.preset, Path(scratch) / "base", dtype=torch.bfloat16)
        tiny.write_tokenizer(base)
        found = []
        for number in range(arguments.rounds):
            cold, warm = round_of_two(Path(scratch) / str(number), base)
            found.append((cold, warm))
            for kind, one in (("first ", cold), ("second", warm)):
                print(
                    f"round {number + 1}, {kind} job: first step begins {one.to_first_step:.3f} s after the claim "
                    f"and takes {one.first_step:.3f} s; {one.overhead:.2f} s from POST to success beside the {STEPS} "
                    "steps",
                    flush=True,
                )
    first, second = (statistics.median(pair[kind].to_first_step for pair in found) for kind in (0, 1))
    taken = [statistics.median(pair[kind].to_first_step + pair[kind].first_step for pair in found) for kind in (0, 1)]
    overhead = statistics.median(warm.overhead for _cold, warm in found)
    print(f"medians: first job {first:.3f} s, second job {second:.3f} s, overhead of the second {overhead:.2f} s")
    print(
        json.dumps(
            {
                "benchmark": "warm_start",
                "device": "cpu",
                "preset": arguments.preset,
                "first_seconds": round(first, 3),
                "second_seconds": round(second, 3),
                "overhead_seconds": round(overhead, 3),
                "ratio": round(second / first, 3),
                "ratio_with_step": round(taken[1] / taken[0], 3),
            }
        )
    )


def round_of_two(data: Path, base: Path) -> tuple[Timing, Timing]:
    """The timings of two jobs, one after the other, on a server of their own."""
    installation = Installation(data)
    added = installation.hone("models", "add", "base", "--source", str(base))
    assert added.returncode == 0, added.stdout + added.stderr
    with installation.serving() as server:
        wait_for(lambda: "is ready" in server.output.read_text(), seconds=120)
        cold = timed_job(server, rows(STEPS * EXAMPLES_A_STEP))
        warm = timed_job(server, rows(STEPS * EXAMPLES_A_STEP, start=1000))
        server.interrupt()
    return cold, warm


def timed_job(server: Process, data: bytes) -> Timing:
    client = server.client()
    file = client.files.create(file=("train.jsonl", data), purpose="fine-tune")
    began = time.monotonic()
    job = client.fine_tuning.jobs.create(
        model="base",
        training_file=file.id,
        seed=1,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": EXAMPLES_A_STEP}},
        },
    )
    while job.status not in TERMINAL:
        time.sleep(0.03)
        job = client.fine_tuning.jobs.retrieve(job.id)
    whole = time.monotonic() - began
    assert job.status == "succeeded", job.error
    line = server.wait_for_line(f"job {job.id}: first step after")
    until_taken, first_step = (float(text) for text in re.findall(r"([\d.]+) s\b", line))
    return Timing(until_taken - first_step, first_step, whole - step_seconds(server.installation.data, job.id))


def step_seconds(data: Path, job_id: str) -> float:
    """The sum of the seconds that the trainer was in the job's steps, as it told the database."""
    with closing(sqlite3.connect(f"file:{data / 'hone.db'}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT \"values\" FROM step_metrics WHERE job_id = ? AND kind = 'train'", (job_id,))
        seconds = [json.loads(values)["seconds"] for (values,) in found]
    assert len(seconds) == STEPS
    return sum(seconds)


if __name__ == "__main__":
    main()
