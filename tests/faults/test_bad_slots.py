"""F28: a slot on which nothing works takes itself out, and no job pays for it."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from tests.e2e.base_objects import damaged
from tests.e2e.processes import (
    BASE,
    Installation,
    Process,
    create_job,
    messages,
    wait_for,
    wait_for_end,
    wait_for_status,
)
from tests.faults.jobs import LEASE_SECONDS, Install, assert_numbered, stored


def listed(installation: Installation, worker: Process) -> dict[str, Any]:
    shown = installation.hone("workers", "list", "--json")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    (found,) = [one for one in json.loads(shown.stdout)["data"] if one["pid"] == worker.pid]
    return found


@contextmanager
def killing_trainers_of(worker: Process) -> Iterator[None]:
    """As a device would from which every process is thrown out."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.2):
            for trainer in worker.trainers():
                with suppress(ProcessLookupError):
                    os.kill(trainer, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


def test_f28_a_slot_whose_trainers_die_takes_itself_out(install: Install) -> None:
    installation = install(lease_seconds=str(LEASE_SECONDS))
    with installation.serving("--api-only") as api, installation.working() as bad:
        client = api.client()
        with killing_trainers_of(bad):
            jobs = [create_job(client, epochs=1).id for _ in range(2)]
            wait_for(lambda: listed(installation, bad)["state"] == "unhealthy", seconds=90)
        time.sleep(2 * LEASE_SECONDS)  # nor does it come back
        assert [slot["state"] for slot in listed(installation, bad)["slots"]] == ["unhealthy"]
        for job in jobs:
            assert client.fine_tuning.jobs.retrieve(job).status in ("validating_files", "queued")
            assert stored(installation, job)[0].crashes == 0
        with installation.working():
            for job in jobs:
                assert wait_for_end(client, job).status == "succeeded"
    for job in jobs:
        assert stored(installation, job)[0].crashes == 0
        assert_numbered(installation, job)


def test_f28_a_base_that_a_worker_cannot_get_is_left_to_others(install: Install) -> None:
    installation = install(lease_seconds=str(LEASE_SECONDS))
    with installation.serving("--api-only") as api, installation.working("--cpu") as checker:
        client = api.client()
        job = create_job(client, epochs=1)
        wait_for_status(client, job.id, "queued")
        checker.kill()
        with ExitStack() as running:
            with damaged(installation, BASE, "model.safetensors"):
                lacking = running.enter_context(installation.elsewhere().working())
                wait_for(lambda: listed(installation, lacking)["unavailable_bases"], seconds=60)
                why = "model.safetensors is damaged in storage: its hash is not the registered one"
                assert listed(installation, lacking)["unavailable_bases"] == {BASE: why}
                assert f"cannot get {BASE}: {why}" in installation.hone("workers", "list").stdout
                wait_for_status(client, job.id, "queued")
                told = messages(client, job.id)
                nobody = f"No worker of the pool 'default' can get the base model {BASE}; the job waits until one can"
                assert told[-1] == nobody
                time.sleep(LEASE_SECONDS)
                assert messages(client, job.id) == told  # it is not claimed again
                assert [slot["state"] for slot in listed(installation, lacking)["slots"]] == ["idle"]
            with installation.working():
                assert wait_for_end(client, job.id).status == "succeeded"
    assert stored(installation, job.id)[0].crashes == 0
