"""F3: whoever is told to stop writes a checkpoint, gives its job back uncounted, and ends well."""

import os
import signal

import pytest

from tests.e2e.fixtures import EPOCHS
from tests.e2e.processes import Installation, Process, create_job, messages, wait_for_step
from tests.faults.jobs import Install, assert_as_undisturbed, assert_numbered, stored
from tests.faults.test_processes_die import step_at


def terminate(worker: Process, installation: Installation) -> None:
    worker.signal(signal.SIGTERM)


def drain(worker: Process, installation: Installation) -> None:
    """The trainer is held until the worker knows: starting commands takes seconds."""
    (trainer,) = worker.trainers()
    os.kill(trainer, signal.SIGSTOP)
    (line,) = [line for line in installation.hone("workers", "list").stdout.splitlines() if f" {worker.pid} " in line]
    asked = installation.hone("workers", "drain", line.split()[0])
    assert asked.returncode == 0, asked.stdout + asked.stderr
    worker.wait_for_line("was asked to drain")
    os.kill(trainer, signal.SIGCONT)


@pytest.mark.parametrize("stop", [terminate, drain])
def test_f3_a_stopped_worker_gives_its_job_back(install: Install, undisturbed: list[str], instant: float, stop) -> None:
    installation = install()
    with installation.serving("--api-only") as api:
        client = api.client()
        with installation.working() as first:
            job = create_job(client, epochs=EPOCHS)
            wait_for_step(client, job.id, step_at(instant))
            stop(first, installation)
            assert first.ended() == 0
        assert not list((installation.data / "work").iterdir())
        assert len(installation.hone("workers", "list").stdout.splitlines()) == 1  # the heading

        waiting = client.fine_tuning.jobs.retrieve(job.id)
        assert waiting.status == "queued"
        reached = waiting.to_dict()["hone"]["current_step"]  # pyright: ignore
        assert next(iter(client.fine_tuning.jobs.checkpoints.list(job.id))).step_number == reached
        row, events = stored(installation, job.id)
        assert (row.crashes, row.has_been_excused) == (0, False)
        assert [event.message for event in events if event.level != "info"] == []
        assert messages(client, job.id)[-1].endswith("because its worker is stopping; it will be resumed")

        with installation.working():
            assert_as_undisturbed(client, job.id, undisturbed)
    assert_numbered(installation, job.id)
