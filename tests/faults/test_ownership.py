"""F6, F24: a job has one owner, whoever else believes to be it."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.backends import Backends
from tests.e2e.fixtures import EPOCHS
from tests.e2e.processes import PATIENCE, Installation, Process, create_job, messages, wait_for, wait_for_step
from tests.faults.jobs import (
    LEASE_SECONDS,
    RESUMED,
    Install,
    Recovered,
    add_queued_job,
    assert_as_undisturbed,
    assert_numbered,
    holder,
    stored,
    wait_until_ready,
)
from tests.faults.test_processes_die import step_at

CLAIMERS, CLAIMS = 4, 50

# Claims whatever is free and gives it back, under names that tell which process and which turn it was.
CLAIM = """
import asyncio, sys
from app.db.models import JobStatus
from app.resources import open_resources
from app.services import events, leases
from app.settings import Settings

async def main(process, turns):
    async with open_resources(Settings()) as resources:
        taken = 0
        while taken < turns:
            async with resources.write() as session:
                claimed = await leases.claim(
                    session, owner=f"worker-{process}/0", status=JobStatus.QUEUED, ttl_seconds=60
                )
            if claimed is None:
                await asyncio.sleep(0)
                continue
            taken += 1
            async with resources.write() as session:
                job, now = await leases.hold(session, claimed[0])
                events.add(session, job, f"held by {process}", now=now)
            async with resources.write() as session:
                job, now = await leases.hold(session, claimed[0])
                leases.hand_back(session, job, message=f"given back by {process}", now=now)
            print(claimed[0].fence)

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""


def test_f6_a_worker_that_slept_longer_than_its_lease_is_fenced(
    install: Install, undisturbed: list[str], instant: float, recovered: Recovered
) -> None:
    """It wakes while the other works on: what it then writes and uploads changes nothing."""
    # It may fall asleep in a transaction: PostgreSQL ends that when it has waited for as long as is usual.
    installation = install(lease_seconds=str(LEASE_SECONDS), database_timeout_seconds="3")
    working = (installation.working(), installation.working())
    with installation.serving("--api-only") as api, working[0] as here, working[1] as there:
        wait_until_ready(api, workers=2)
        client = api.client()
        job = create_job(client, epochs=EPOCHS)
        wait_for_step(client, job.id, step_at(instant))
        sleeper = holder(api, job.id, here, there)
        stop_outside_of_a_transaction(sleeper, installation)
        slept_at = time.monotonic()
        wait_for(lambda: RESUMED in messages(client, job.id), seconds=30)
        recovered(time.monotonic() - slept_at)
        assert time.monotonic() - slept_at < (LEASE_SECONDS + 5) * PATIENCE
        fence = stored(installation, job.id)[0].fence
        sleeper.signal(signal.SIGCONT)
        assert_as_undisturbed(client, job.id, undisturbed)
        assert sleeper.trainers()  # it goes on with its life, without this job
        assert stored(installation, job.id)[0].fence == fence
    assert_numbered(installation, job.id)


def stop_outside_of_a_transaction(worker: Process, installation: Installation) -> None:
    """Whoever sleeps while holding SQLite's one write lock holds up everybody, which no lease can help."""
    if "HONE_DATABASE_URL" in installation.settings:
        worker.signal(signal.SIGSTOP)
        return
    connection = sqlite3.connect(installation.data / "hone.db", timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    worker.signal(signal.SIGSTOP)
    connection.execute("ROLLBACK")
    connection.close()


def test_f24_one_job_claimed_two_hundred_times_by_four_processes(backends: Backends, tmp_path: Path) -> None:
    site = backends.new(tmp_path / "data")
    job_id = add_queued_job(site.settings())
    installation = Installation.at(site)
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(number), str(CLAIMS)],
            env=installation.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(CLAIMERS)
    ]
    try:
        fences = [int(line) for claimer in claimers for line in claimer.communicate(timeout=250 * PATIENCE)[0].split()]
        assert [claimer.returncode for claimer in claimers] == [0] * CLAIMERS
    finally:
        for claimer in claimers:
            claimer.kill()
            claimer.wait()
    job, events = stored(installation, job_id)
    assert sorted(fences) == list(range(1, CLAIMERS * CLAIMS + 1))
    assert job.fence == CLAIMERS * CLAIMS
    # Claim, hold, give back: never did one come between another's.
    told = [event.message for event in events]
    turns = [told[place : place + 3] for place in range(0, len(told), 3)]
    assert all(held.removeprefix("held by ") == back.removeprefix("given back by ") for _, held, back in turns)
    assert Counter(held for _, held, _ in turns) == {f"held by {number}": CLAIMS for number in range(CLAIMERS)}
    backends.discard(site)
