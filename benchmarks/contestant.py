"""One system of a contest: `python -m benchmarks.contestant SYSTEM DIRECTORY`, started by `benchmarks.contest`.

It reports its idle memory when it is ready; then each line on stdin is a turn, answered with a line on stdout.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import contest


class Turns:
    """The clock: from the command for a step to the step's end, whatever lies between."""

    def __init__(self) -> None:
        # Libraries may print; what the parent reads must be ours alone.
        self._reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        # Forget the peak of the imports: what is left are the libraries themselves.
        Path("/proc/self/clear_refs").write_text("5")
        self._idle = contest.resident_bytes()
        self._cpu = self._wall = 0.0

    def ready(self) -> None:
        self._report({"idle_bytes": self._idle})

    def begin(self) -> None:
        """Wait for the command; the process ends where there is none."""
        if not sys.stdin.readline():
            sys.exit()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def end(self, loss: float) -> None:
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        self._report({"loss": loss, "cpu_seconds": cpu, "wall_seconds": wall, "peak_bytes": contest.peak_bytes()})

    def _report(self, fields: dict[str, Any]) -> None:
        print(json.dumps(fields), file=self._reports, flush=True)


def main() -> None:
    system, directory = sys.argv[1], Path(sys.argv[2])
    given = contest.Contest.load(directory)
    take_part: Callable[[contest.Contest, Path, Turns], None]
    take_part = importlib.import_module(f"benchmarks.systems.{system}").take_part
    torch.set_num_threads(given.threads)
    take_part(given, directory, Turns())


if __name__ == "__main__":
    main()
