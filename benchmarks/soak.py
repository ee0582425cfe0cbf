"""Nothing is lost and nothing is done twice: `python -m benchmarks.soak [--seconds 600] [--jobs N] [--seed 1]`.

Several API servers and workers, each a process, on PostgreSQL, Redis and S3 of the soak's own. Clients ask for small
jobs of mixed kinds while every few seconds a process is killed (SIGKILL), stopped (SIGTERM) or put to sleep (SIGSTOP,
then SIGCONT), and the database and Redis are restarted twice each. Beforehand each kind is run once undisturbed; at
the end every job must have ended as its kind does, with the very figures of that run, and the promises of
docs/reliability.md are checked over every request, row, object and log. The last line is one JSON object: `lost` are
jobs that were acknowledged and are gone or have not ended as their kind does, `doubled` those with two ends, two
models or two tellings of a step. The exit status is 0 only where both are 0, all figures agree and no promise was
broken.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import soak_jobs
from benchmarks.soak_chaos import Chaos, Member
from benchmarks.soak_jobs import Ask, Caller
from benchmarks.soak_report import report
from tests.backends import Production
from tests.e2e.processes import BASE, Installation
from tests.servers import postgres, redis, s3
from tests.tiny import build_tiny_base

LEASE_SECONDS = 5
_REFERENCE_SECONDS, _SETTLE_SECONDS = 300.0, 600.0
_BAD = ("lost", "doubled", "with_other_figures", "broken_promises", "client_failures")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--jobs", type=int, help="default: one for every three seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=4, help="seconds between strikes")
    arguments = parser.parse_args()
    is_long = arguments.seconds >= 300
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    asks = soak_jobs.plan(
        arguments.jobs or max(12, int(arguments.seconds / 3)),
        arguments.seconds,
        seed=arguments.seed,
        long_epochs=50 if is_long else 12,  # 2400 steps, or 576
    )
    with (
        tempfile.TemporaryDirectory(prefix="hone-soak-") as scratch,
        _servers(Path(scratch)) as (database, wakes, site),
    ):
        installation = Installation.at(
            site, lease_seconds=str(LEASE_SECONDS), max_crashes="100", stop_grace_seconds="3", slots="1"
        )
        added = installation.hone("models", "add", BASE, "--source", str(build_tiny_base(Path(scratch) / "base")))
        assert added.returncode == 0, added.stdout + added.stderr
        chaos = Chaos(
            _members(installation, num_apis=3 if is_long else 2, num_workers=4 if is_long else 2),
            database,
            wakes,
            random.Random(arguments.seed),
            pause_seconds=arguments.pause,
            asleep_seconds=1.5 * LEASE_SECONDS,
        )
        try:
            return _soak(installation, chaos, asks, arguments.seconds)
        finally:
            for member in chaos.members:
                if member.process is not None:
                    member.process.kill()


def _soak(installation: Installation, chaos: Chaos, asks: Sequence[Ask], seconds: float) -> int:
    with ThreadPoolExecutor(len(chaos.members)) as starting:
        list(starting.map(Member.start, chaos.members))
    given_up = threading.Event()
    caller = Caller(chaos.clients, random.Random(0), given_up)
    references = _references(caller, asks)
    print(f"{len(references)} kinds were run undisturbed; {len(asks)} jobs begin", flush=True)

    began = time.monotonic()
    with ThreadPoolExecutor(len(asks)) as waiting:
        followed = [waiting.submit(_follow, caller, ask, began) for ask in asks]
        chaos.run(seconds)  # in this thread: the servers that it starts end with the one that has started them
        print(
            f"{sum(chaos.kills().values())} strikes in {time.monotonic() - began:.0f} s; now all is quiet", flush=True
        )
        quiet_at = time.monotonic()
        while time.monotonic() - quiet_at < _SETTLE_SECONDS:
            if all(one.done() for one in followed) and caller.have_all_ended():
                break
            time.sleep(0.5)
        given_up.set()
        failures = [str(error) for one in followed if (error := one.exception()) is not None]
    settled = time.monotonic() - quiet_at
    figures = report(installation, chaos, asks, references, caller, failures)
    figures |= {"seconds": round(quiet_at - began), "settle_seconds": round(settled, 1)}
    print(json.dumps(figures))
    return int(any(figures[bad] for bad in _BAD))


def _follow(caller: Caller, ask: Ask, began: float) -> None:
    """One client: asks for its job at its time, cancels it if that is its kind, and waits for the end."""
    time.sleep(max(0.0, began + ask.at_seconds - time.monotonic()))
    caller.create(ask)
    assert ask.job_id is not None
    if ask.cancel_after_seconds is not None:
        time.sleep(ask.cancel_after_seconds)
        caller.cancel(ask.job_id)
    while caller.job(ask.job_id).status not in ("succeeded", "failed", "cancelled"):
        if caller.over.wait(5):
            return


def _references(caller: Caller, asks: Sequence[Ask]) -> dict[str, str]:
    """The step metrics of each kind that succeeds, from a run to which nothing happens."""
    asked = {ask.kind.name: replace(ask) for ask in asks if ask.kind.end == "succeeded"}
    for ask in asked.values():
        caller.create(ask)
    found: dict[str, str] = {}
    for name, ask in asked.items():
        job = caller.wait(ask.job_id or "", seconds=_REFERENCE_SECONDS)
        assert job.status == "succeeded", (name, job.status, job.error)
        found[name] = caller.metrics(job)
    return found


def _members(installation: Installation, *, num_apis: int, num_workers: int) -> list[Member]:
    """The workers are on two machines, of which neither can see whether processes of the other are alive."""
    places = (installation, installation.elsewhere())
    apis = [
        Member(f"api-{number}", installation, ("serve", "--api-only", "--port", "0"), "Hone serves")
        for number in range(num_apis)
    ]
    return apis + [
        Member(f"worker-{number}", places[number % 2], ("worker",), "Hone works") for number in range(num_workers)
    ]


@contextmanager
def _servers(scratch: Path) -> Iterator[tuple[Any, Any, Any]]:
    with (
        postgres.running() as database,
        redis.running(scratch / "redis", password="a-secret-of-redis", append_only=True) as wakes,
        s3.moto() as objects,
    ):
        yield database, wakes, Production(database, wakes, objects).new(scratch / "data")


if __name__ == "__main__":
    sys.exit(main())
