"""A paused job stops at a checkpoint, holds no slot, and goes on exactly; whatever happens in between."""

import os
import signal
from collections.abc import Callable

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.fixtures import EPOCHS
from tests.e2e.processes import (
    Installation,
    Process,
    create_job,
    messages,
    wait_for,
    wait_for_end,
    wait_for_status,
    wait_for_step,
)
from tests.faults.jobs import RESUMED, Install, assert_as_undisturbed, assert_cancelled, assert_numbered, stored
from tests.faults.test_cancelling import just_claimed, while_saving, while_uploading
from tests.faults.test_processes_die import step_at

PAUSED = "The job has been paused"
REQUEUED = "The job has been resumed, moving job to queued state"


def wait_until_let_go(installation: Installation, job_id: str) -> None:
    """Until the worker has stopped the run, and the job has no holder."""
    wait_for(lambda: stored(installation, job_id)[0].lease_owner is None, seconds=60)


def reached(client: OpenAI, job: FineTuningJob) -> int:
    return client.fine_tuning.jobs.retrieve(job.id).to_dict()["hone"]["current_step"]  # pyright: ignore


def test_a_paused_job_leaves_a_checkpoint_and_goes_on_exactly(
    install: Install, undisturbed: list[str], instant: float
) -> None:
    installation = install()
    with installation.serving() as server:
        client = server.client()
        jobs = client.fine_tuning.jobs
        job = create_job(client, epochs=EPOCHS)
        wait_for_step(client, job.id, step_at(instant))

        paused = jobs.pause(job.id)
        assert paused.to_dict()["status"] == "paused"
        assert (paused.estimated_finish, paused.finished_at, paused.trained_tokens) == (None, None, None)
        assert jobs.pause(job.id).to_dict()["status"] == "paused"
        wait_until_let_go(installation, job.id)
        newest = jobs.checkpoints.list(job.id).data[0]
        assert newest.step_number == reached(client, job)
        with server.http() as http:
            adapter = http.get(f"/v1/fine_tuning/jobs/{job.id}/checkpoints/{newest.id}/adapter")
        assert adapter.status_code == 200

        # Its slot is free, and its checkpoint is a model to continue from.
        following = create_job(client, epochs=1, model=newest.fine_tuned_model_checkpoint)
        assert wait_for_end(client, following.id).status == "succeeded"
        assert jobs.retrieve(job.id).to_dict()["status"] == "paused"

        assert jobs.resume(job.id).status == "queued"
        assert_as_undisturbed(client, job.id, undisturbed)
        told = messages(client, job.id)
        assert [told.count(message) for message in (PAUSED, REQUEUED, RESUMED)] == [1, 1, 1]
        assert told.index(PAUSED) < told.index(REQUEUED) < told.index(RESUMED)
        assert stored(installation, job.id)[0].crashes == 0
    assert_numbered(installation, job.id)


def test_a_pause_that_is_taken_back_before_the_worker_knows(install: Install, undisturbed: list[str]) -> None:
    installation = install()
    with installation.serving() as server:
        client = server.client()
        job = create_job(client, epochs=EPOCHS)
        wait_for_step(client, job.id, 5)
        for _ in range(3):
            client.fine_tuning.jobs.pause(job.id)
            assert client.fine_tuning.jobs.resume(job.id).status == "queued"
        assert_as_undisturbed(client, job.id, undisturbed)
        assert messages(client, job.id).count(PAUSED) == 3
    assert_numbered(installation, job.id)


def test_a_worker_killed_between_a_pause_and_its_checkpoint(install: Install, undisturbed: list[str]) -> None:
    installation = install()
    with installation.serving("--api-only") as api:
        client = api.client()
        with installation.working() as first:
            job = create_job(client, epochs=EPOCHS)
            wait_for_step(client, job.id, 15)
            (trainer,) = first.trainers()
            os.kill(trainer, signal.SIGSTOP)  # so that it cannot save anything
            client.fine_tuning.jobs.pause(job.id)
            first.kill()
        before = client.fine_tuning.jobs.checkpoints.list(job.id).data[0].step_number
        with installation.working():
            lost = "The worker process died; the job goes on from its last checkpoint"
            wait_for(lambda: lost in messages(client, job.id), seconds=30)
            assert client.fine_tuning.jobs.retrieve(job.id).to_dict()["status"] == "paused"
            assert client.fine_tuning.jobs.checkpoints.list(job.id).data[0].step_number == before
            client.fine_tuning.jobs.resume(job.id)
            assert_as_undisturbed(client, job.id, undisturbed)
        assert stored(installation, job.id)[0].crashes == 0
    assert_numbered(installation, job.id)


def test_a_job_paused_at_its_very_end_is_finished_when_it_is_resumed(install: Install, undisturbed: list[str]) -> None:
    """The trainer takes its last step while the pause is on its way."""
    installation = install()
    with installation.serving() as server:
        client = server.client()
        job = create_job(client, epochs=EPOCHS)
        wait_for_step(client, job.id, 12 * EPOCHS - 2)
        paused = client.fine_tuning.jobs.pause(job.id)
        wait_until_let_go(installation, job.id)
        assert client.fine_tuning.jobs.retrieve(job.id).to_dict()["status"] == paused.to_dict()["status"] == "paused"
        client.fine_tuning.jobs.resume(job.id)
        assert_as_undisturbed(client, job.id, undisturbed)
    assert_numbered(installation, job.id)


@pytest.mark.parametrize("bring", [just_claimed, while_saving, while_uploading])
def test_paused_in_each_phase(server: Process, bring: Callable[[OpenAI, Installation], FineTuningJob]) -> None:
    client = server.client()
    job = bring(client, server.installation)
    client.fine_tuning.jobs.pause(job.id)
    wait_until_let_go(server.installation, job.id)
    step = reached(client, job)
    saved = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [checkpoint.step_number for checkpoint in saved[:1]] == ([step] if step else [])
    client.fine_tuning.jobs.resume(job.id)
    wait_for_step(client, job.id, step + 2)
    client.fine_tuning.jobs.cancel(job.id)
    assert_cancelled(client, job.id)
    assert_numbered(server.installation, job.id)


def test_a_paused_job_is_cancelled(server: Process) -> None:
    client = server.client()
    job = create_job(client, epochs=50)
    wait_for_step(client, job.id, 3)
    client.fine_tuning.jobs.pause(job.id)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    following = create_job(client, epochs=1)
    assert wait_for_end(client, following.id).status == "succeeded"
    assert_cancelled(client, job.id)
    assert_numbered(server.installation, job.id)


def test_a_job_is_paused_while_it_is_queued(install: Install) -> None:
    installation = install()
    with installation.serving("--api-only") as api, installation.working("--cpu"):
        client = api.client()
        job = create_job(client, epochs=1)
        wait_for_status(client, job.id, "queued")
        client.fine_tuning.jobs.pause(job.id)
        with installation.working():
            following = create_job(client, epochs=1)
            assert wait_for_end(client, following.id).status == "succeeded"
            assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []
            client.fine_tuning.jobs.resume(job.id)
            assert wait_for_end(client, job.id).status == "succeeded"
    assert_numbered(installation, job.id)
