"""Who asks for a job's status while others attack: `python -m benchmarks.hostile_polls [--seconds 60]`.

A server, a worker that checks files, and a client that asks for a job's status over and over: first alone, then while
another process sends all that `hostile_attacks` has, at the same time and again and again. The last line is one JSON
object with the 99th percentile of the status' latency in milliseconds, quiet and under attack, and their ratio. The
exit status is 0 only where every attack was refused with its reason and every status was answered.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app import base_import
from app.resources import open_resources
from benchmarks import hostile_attacks
from tests.backends import Embedded, Site
from tests.e2e.processes import KEY, Installation, Process, rows

_PAUSE_SECONDS = 0.02
_WARM_UP_POLLS = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of either part")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hone-hostile-") as scratch:
        site = Embedded(Path(scratch) / "migrated").new(Path(scratch) / "data")
        measured = measure(site, Path(scratch) / "bases", seconds=arguments.seconds)
    for name, told in measured["attacks"].items():
        print(f"{name:28} refused {told['refused']:5} times  {told['other'] or ''}")
    print(json.dumps({name: value for name, value in measured.items() if name != "attacks"}))
    is_good = not measured["failed_polls"] and not any(told["other"] for told in measured["attacks"].values())
    return 0 if is_good else 1


def measure(site: Site, bases: Path, *, seconds: float, left_out: Collection[str] = ()) -> dict[str, Any]:
    """All figures, in milliseconds where nothing else is said, and under `attacks` how often each was refused."""
    installation = Installation.at(site, validation_timeout_seconds="4", validation_memory_bytes=str(1 << 29))
    asyncio.run(_register(installation, bases))
    with installation.serving("--api-only") as api:
        job = _a_job(api)  # there is no worker yet: it stays as it is
        with _polling(api, job) as quiet:
            time.sleep(max(seconds, 1))
        with installation.working("--cpu"), _polling(api, job) as attacked:
            command = [sys.executable, "-m", "benchmarks.hostile_attacks", api.url, KEY, str(seconds), *left_out]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 600)
    p99 = {"quiet": _percentile(quiet.milliseconds, 99), "attacked": _percentile(attacked.milliseconds, 99)}
    return {
        "polls_quiet": len(quiet.milliseconds),
        "polls_attacked": len(attacked.milliseconds),
        "failed_polls": quiet.failed + attacked.failed,
        "p50_quiet_ms": _percentile(quiet.milliseconds, 50),
        "p50_attacked_ms": _percentile(attacked.milliseconds, 50),
        "p99_quiet_ms": p99["quiet"],
        "p99_attacked_ms": p99["attacked"],
        "most_attacked_ms": round(max(attacked.milliseconds), 1),
        "ratio": round(p99["attacked"] / p99["quiet"], 2),
        "attacks": json.loads(done.stdout.splitlines()[-1]),
    }


async def _register(installation: Installation, directory: Path) -> None:
    async with open_resources(installation.as_settings()) as resources:
        for name, base in hostile_attacks.bases(directory):
            await base_import.run(resources, model_id=name, source=str(base))


class Polls:
    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self.failed = 0


@contextmanager
def _polling(api: Process, job: str) -> Iterator[Polls]:
    """Asks in a thread until the block ends."""
    polls, has_begun, is_over = Polls(), threading.Event(), threading.Event()

    def poll() -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=api.url, headers=headers, timeout=60) as http:
            for _ in range(_WARM_UP_POLLS):
                http.get(f"/v1/fine_tuning/jobs/{job}")
            has_begun.set()
            while not is_over.wait(_PAUSE_SECONDS):
                began = time.perf_counter()
                try:
                    is_good = http.get(f"/v1/fine_tuning/jobs/{job}").status_code == 200
                except httpx.HTTPError:
                    is_good = False
                polls.milliseconds.append((time.perf_counter() - began) * 1000)
                polls.failed += not is_good

    thread = threading.Thread(target=poll)
    thread.start()
    has_begun.wait(60)
    try:
        yield polls
    finally:
        is_over.set()
        thread.join()


def _a_job(api: Process) -> str:
    client = api.client()
    training = client.files.create(file=("train.jsonl", rows(12)), purpose="fine-tune")
    return client.fine_tuning.jobs.create(model=hostile_attacks.PLAIN_BASE, training_file=training.id).id


def _percentile(values: list[float], percent: int) -> float:
    return round(sorted(values)[min(len(values) - 1, len(values) * percent // 100)], 1)


if __name__ == "__main__":
    sys.exit(main())
