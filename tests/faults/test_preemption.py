"""A run that may be interrupted makes room for a job of higher priority, and loses nothing by it."""

import os
import signal

from tests.e2e.fixtures import EPOCHS
from tests.e2e.processes import create_job, messages, wait_for_end, wait_for_step
from tests.faults.jobs import RESUMED, Install, assert_as_undisturbed, assert_numbered, stored
from tests.faults.test_processes_die import step_at

PREEMPTED = "Fine-tuning job preempted by a job of higher priority; it will be resumed"


def test_a_preempted_jobs_losses_are_those_of_an_undisturbed_one(
    install: Install, undisturbed: list[str], instant: float
) -> None:
    installation = install()
    with installation.serving() as server:
        client = server.client()
        job = create_job(client, epochs=EPOCHS, extra_body={"hone": {"preemptible": True}})
        wait_for_step(client, job.id, step_at(instant))

        # So that it is not done before the other's files are checked, and it has waited.
        (trainer,) = server.trainers()
        os.kill(trainer, signal.SIGSTOP)
        urgent = create_job(client, epochs=1, extra_body={"hone": {"priority": 10}})
        server.wait_for_line(f"job {job.id}: makes room")
        os.kill(trainer, signal.SIGCONT)

        assert wait_for_end(client, urgent.id).status == "succeeded"
        told = messages(client, job.id)
        assert told.count(PREEMPTED) == 1
        assert_as_undisturbed(client, job.id, undisturbed)
        told = messages(client, job.id)
        assert (told.count(PREEMPTED), told.count(RESUMED)) == (1, 1)
        row, _ = stored(installation, job.id)
        ended, _ = stored(installation, urgent.id)
        assert row.crashes == 0
        assert row.finished_at
        assert ended.finished_at
        assert ended.finished_at < row.finished_at
    assert_numbered(installation, job.id)
