"""F23: a cancellation is final at once, in whatever phase it comes, and the slot is free for the next job soon."""

import os
import signal
import time
from collections.abc import Callable

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.processes import (
    PATIENCE,
    Installation,
    Process,
    create_job,
    is_alive,
    messages,
    rows,
    wait_for,
    wait_for_end,
    wait_for_status,
    wait_for_step,
)
from tests.faults.jobs import Install, assert_cancelled, assert_numbered, watching_objects

PROMISED_SECONDS = 10.0


def in_validation(client: OpenAI, installation: Installation) -> FineTuningJob:
    """A file that takes seconds to check, of which nobody waits for the end."""
    job = create_job(client, epochs=1, train=rows(60_000))
    wait_for(lambda: work_of(installation, job.id, "training.jsonl"), seconds=60)
    return job


def just_claimed(client: OpenAI, installation: Installation) -> FineTuningJob:
    job = create_job(client, epochs=50)
    return wait_for_status(client, job.id, "running")


def in_training(client: OpenAI, installation: Installation) -> FineTuningJob:
    job = create_job(client, epochs=50)
    return wait_for_step(client, job.id, 3)


def while_saving(client: OpenAI, installation: Installation) -> FineTuningJob:
    """The trainer has begun to write a checkpoint."""
    job = create_job(client, epochs=50)
    wait_for(lambda: work_of(installation, job.id, "checkpoints/*"), seconds=90)
    return job


def while_uploading(client: OpenAI, installation: Installation) -> FineTuningJob:
    """The first part of a checkpoint is stored."""
    job = create_job(client, epochs=50)
    with watching_objects(installation, job.id) as is_there:
        wait_for(lambda: is_there("*/checkpoints/*/adapter.zip"), seconds=90)
    return job


def work_of(installation: Installation, job_id: str, pattern: str) -> list[object]:
    return list((installation.data / "work").glob(f"*/{job_id}.*/{pattern}"))


@pytest.mark.parametrize("bring", [in_validation, just_claimed, in_training, while_saving, while_uploading])
def test_f23_cancelled_in_each_phase(server: Process, bring: Callable[[OpenAI, Installation], FineTuningJob]) -> None:
    client = server.client()
    job = bring(client, server.installation)
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    cancelled_at = time.monotonic()
    assert cancelled.status == "cancelled"

    following = create_job(client, epochs=1)

    wait_for(lambda: client.fine_tuning.jobs.retrieve(following.id).status in ("running", "succeeded"), seconds=60)
    assert time.monotonic() - cancelled_at < PROMISED_SECONDS * PATIENCE
    assert wait_for_end(client, following.id).status == "succeeded"
    assert_cancelled(client, job.id)
    assert_numbered(server.installation, job.id)
    assert not work_of(server.installation, job.id, "")


def test_f23_cancelled_while_it_is_queued(install: Install) -> None:
    installation = install()
    with installation.serving("--api-only") as api, installation.working("--cpu"):
        client = api.client()
        job = create_job(client, epochs=1)
        wait_for_status(client, job.id, "queued")
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        assert_cancelled(client, job.id)
    assert_numbered(installation, job.id)


def test_f23_cancelled_while_the_base_is_loaded_for_the_first_time(install: Install) -> None:
    with install().serving() as server:
        client = server.client()
        job = just_claimed(client, server.installation)  # the trainer is still importing
        client.fine_tuning.jobs.cancel(job.id)
        cancelled_at = time.monotonic()
        following = create_job(client, epochs=1)
        wait_for_status(client, following.id, "running", seconds=10)
        assert time.monotonic() - cancelled_at < PROMISED_SECONDS * PATIENCE
        assert wait_for_end(client, following.id).status == "succeeded"
        assert_cancelled(client, job.id)


def test_a_cancelled_jobs_trainer_is_kept(server: Process) -> None:
    client = server.client()
    job = in_training(client, server.installation)
    trainers = server.trainers()
    client.fine_tuning.jobs.cancel(job.id)
    following = create_job(client, epochs=1)
    assert wait_for_end(client, following.id).status == "succeeded"
    assert server.trainers() == trainers


def test_a_stopped_trainer_cannot_hold_up_a_cancel(install: Install) -> None:
    """The trainer hangs, the job is cancelled: within ten seconds the slot works for the next job."""
    with install(stop_grace_seconds="2").serving() as server:
        client = server.client()
        job = in_training(client, server.installation)
        (trainer,) = server.trainers()
        os.kill(trainer, signal.SIGSTOP)

        client.fine_tuning.jobs.cancel(job.id)

        wait_for(lambda: not is_alive(trainer), seconds=PROMISED_SECONDS)
        assert messages(client, job.id)[-1] == "The job has been cancelled"
