"""Processes die at bad moments; the job ends as if they had not."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable

from openai import OpenAI

from tests.backends import Site
from tests.e2e.conftest import EPOCHS
from tests.e2e.processes import (
    Installation,
    Process,
    create_job,
    is_alive,
    messages,
    metrics,
    rows,
    wait_for,
    wait_for_end,
    wait_for_status,
    wait_for_step,
)

Install = Callable[..., Installation]


def assert_as_undisturbed(client: OpenAI, job_id: str, undisturbed: list[str]) -> None:
    """The same figures step for step, and nothing told twice."""
    job = wait_for_end(client, job_id)
    assert metrics(client, job) == undisturbed
    steps = Counter(message.split(":")[0] for message in messages(client, job_id) if message.startswith("Step "))
    assert len(steps) == len(undisturbed) - 1
    assert set(steps.values()) == {1}
    assert messages(client, job_id).count("The job has successfully completed") == 1


def test_a_killed_trainer_is_replaced_and_the_job_resumed(server: Process, undisturbed: list[str]) -> None:
    client = server.client()
    job = create_job(client, epochs=EPOCHS)
    wait_for_step(client, job.id, 30)

    os.kill(server.trainers()[0], signal.SIGKILL)

    assert_as_undisturbed(client, job.id, undisturbed)
    assert any("killed by SIGKILL" in message for message in messages(client, job.id))


def test_a_killed_server_resumes_its_jobs_at_the_next_start(install: Install, undisturbed: list[str]) -> None:
    installation = install()
    with installation.serving() as first:
        job = create_job(first.client(), epochs=EPOCHS)
        wait_for_step(first.client(), job.id, 30)
        (trainer,) = first.trainers()
        first.kill()
        wait_for(lambda: not is_alive(trainer), seconds=5)

    with installation.serving() as second:
        client = second.client()
        wait_for_status(client, job.id, "running", seconds=10)  # far less than the lease
        assert_as_undisturbed(client, job.id, undisturbed)
        steps = [message for message in messages(client, job.id) if not message.startswith("Step ")]
        assert "The worker process died; the job will be tried again" in steps
        assert "Fine-tuning job resumed" in steps


def test_ctrl_c_checkpoints_and_the_next_start_resumes(install: Install, undisturbed: list[str]) -> None:
    installation = install()
    with installation.serving() as first:
        job = create_job(first.client(), epochs=EPOCHS)
        wait_for_step(first.client(), job.id, 14)
        assert first.interrupt() == 0
        assert not list((installation.data / "work").iterdir())

    with installation.serving("--api-only") as api:
        client = api.client()
        waiting = client.fine_tuning.jobs.retrieve(job.id)
        assert waiting.status == "queued"
        reached = waiting.to_dict()["hone"]["current_step"]  # pyright: ignore
        newest = next(iter(client.fine_tuning.jobs.checkpoints.list(job.id)))
        assert newest.step_number == reached
        with installation.working():
            assert_as_undisturbed(client, job.id, undisturbed)


def test_a_killed_worker_is_replaced_by_another(install: Install, undisturbed: list[str]) -> None:
    installation = install()
    with installation.serving("--api-only") as api, installation.working() as first:
        client = api.client()
        job = create_job(client, epochs=EPOCHS)
        wait_for_step(client, job.id, 30)
        with installation.working():
            first.kill()
            assert_as_undisturbed(client, job.id, undisturbed)


def test_a_trainer_that_stops_moving_is_noticed(install: Install, undisturbed: list[str]) -> None:
    with install(progress_timeout_seconds="5").serving() as server:
        client = server.client()
        job = create_job(client, epochs=EPOCHS)
        wait_for_step(client, job.id, 30)

        os.kill(server.trainers()[0], signal.SIGSTOP)

        assert_as_undisturbed(client, job.id, undisturbed)
        assert any("Training made no progress for 5 seconds" in message for message in messages(client, job.id))


def test_a_job_that_always_crashes_fails_with_a_reason(install: Install) -> None:
    with install().serving() as server:
        client = server.client()
        job = create_job(client, epochs=50)
        for _ in range(3):
            wait_for_status(client, job.id, "running")
            (trainer,) = wait_for(server.trainers, seconds=20)
            os.kill(trainer, signal.SIGKILL)
            wait_for(lambda trainer=trainer: trainer not in server.trainers(), seconds=10)

        ended = wait_for_end(client, job.id)

        assert ended.status == "failed"
        assert ended.error is not None
        assert ended.error.code == "worker_crashed"
        assert "3 crashes without a new checkpoint" in (ended.error.message or "")


def test_a_running_job_is_cancelled_and_the_trainer_kept(server: Process) -> None:
    client = server.client()
    job = create_job(client, epochs=50)
    wait_for_step(client, job.id, 3)
    trainers = server.trainers()

    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"

    next_job = create_job(client, epochs=1)
    assert wait_for_end(client, next_job.id, seconds=30).status == "succeeded"
    assert server.trainers() == trainers
    cancelled = client.fine_tuning.jobs.retrieve(job.id)
    assert cancelled.status == "cancelled"
    assert cancelled.fine_tuned_model is None
    assert messages(client, job.id)[-1].lower().count("cancel") == 1


def test_a_stopped_trainer_cannot_hold_up_a_cancel(install: Install) -> None:
    """The trainer hangs, the job is cancelled: within ten seconds the slot works for the next job."""
    with install(stop_grace_seconds="2").serving() as server:
        client = server.client()
        job = create_job(client, epochs=50)
        wait_for_step(client, job.id, 3)
        (trainer,) = server.trainers()
        os.kill(trainer, signal.SIGSTOP)

        client.fine_tuning.jobs.cancel(job.id)

        wait_for(lambda: not is_alive(trainer), seconds=10)


def test_cancelling_while_the_files_are_checked(server: Process) -> None:
    """A file that takes seconds to check: the next job's files are looked at long before it would be done."""
    client = server.client()
    job = create_job(client, epochs=1, train=rows(60_000))
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"

    next_job = create_job(client, epochs=1)

    assert wait_for_end(client, next_job.id, seconds=30).status == "succeeded"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


def test_cancelling_while_the_base_is_loaded(install: Install) -> None:
    with install().serving() as server:
        client = server.client()
        job = create_job(client, epochs=50)
        wait_for_status(client, job.id, "running")  # the trainer is still importing

        client.fine_tuning.jobs.cancel(job.id)
        cancelled_at = time.monotonic()
        next_job = create_job(client, epochs=1)

        wait_for_status(client, next_job.id, "running", seconds=10)
        assert time.monotonic() - cancelled_at < 10
        assert wait_for_end(client, next_job.id).status == "succeeded"
        assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


def test_an_old_schema_is_refused_with_a_sentence(unmigrated_site: Site) -> None:
    installation = Installation.at(unmigrated_site)
    for command in (["worker"], ["serve", "--api-only", "--port", "0"]):
        refused = installation.hone(*command)
        assert refused.returncode == 1
        assert "hone migrate" in refused.stdout
        assert "Traceback" not in refused.stdout + refused.stderr


def test_a_taken_port_is_told(server: Process, install: Install) -> None:
    refused = install().hone("serve", "--port", server.url.rpartition(":")[2])
    assert refused.returncode == 1
    assert "choose another with --port" in refused.stdout
