"""F1, F2, F4, F5, F22, F27: processes die or hang at bad moments; the job ends as if they had not."""

import os
import signal
import time

from openai import OpenAI

from tests.e2e.fixtures import EPOCHS
from tests.e2e.processes import (
    PATIENCE,
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
from tests.faults.jobs import (
    DONE,
    LEASE_SECONDS,
    RESUMED,
    Install,
    Recovered,
    assert_as_undisturbed,
    assert_numbered,
    holder,
    seconds_until_resumed,
    stored,
    wait_until_ready,
    watching_objects,
)

STEPS = 12 * EPOCHS


def step_at(instant: float) -> int:
    """A step in the first three quarters of the run, to be struck at."""
    return 2 + int(instant * STEPS * 0.7)


def test_f1_a_killed_workers_job_is_resumed_elsewhere(
    install: Install, undisturbed: list[str], instant: float, recovered: Recovered
) -> None:
    """The other worker is on another machine: it cannot know of the death, and waits for the lease to end."""
    installation = install(lease_seconds=str(LEASE_SECONDS))
    working = (installation.working(), installation.elsewhere().working("--slots", "1"))
    with installation.serving("--api-only") as api, working[0] as here, working[1] as there:
        wait_until_ready(api, workers=2)
        client = api.client()
        job = create_job(client, epochs=EPOCHS)
        wait_for_step(client, job.id, step_at(instant))
        holder(api, job.id, here, there).kill()
        killed_at = time.monotonic()
        wait_for(lambda: RESUMED in messages(client, job.id), seconds=30)
        recovered(time.monotonic() - killed_at)
        assert time.monotonic() - killed_at < (LEASE_SECONDS + 5) * PATIENCE
        silent = "The worker was silent for longer than its lease; the job will be tried again"
        assert silent in messages(client, job.id)
        assert_as_undisturbed(client, job.id, undisturbed)
    assert_numbered(installation, job.id)


def test_f2_a_worker_killed_between_upload_and_verdict(install: Install, undisturbed: list[str]) -> None:
    """The adapter is stored, and the job does not know of it yet."""
    installation = install(lease_seconds=str(LEASE_SECONDS))
    with installation.serving("--api-only") as api:
        client = api.client()
        for _ in range(5):  # the moment is short; a worker that has got past it is no test
            with installation.working() as first:
                job = create_job(client, epochs=EPOCHS)
                wait_for_step(client, job.id, STEPS - 10)
                with watching_objects(installation, job.id) as is_there:
                    deadline = time.monotonic() + 60 * PATIENCE
                    while not is_there("*/adapter.zip") and time.monotonic() < deadline:
                        time.sleep(0.0005)
                    first.kill()
            if client.fine_tuning.jobs.retrieve(job.id).status == "running":
                break
        else:
            raise AssertionError("the worker was never killed in time")
        with installation.working():
            assert_as_undisturbed(client, job.id, undisturbed)
        assert "The worker process died; the job will be tried again" in messages(client, job.id)
    assert_numbered(installation, job.id)


def test_f4_a_killed_trainer_is_replaced_and_the_job_resumed(
    server: Process, undisturbed: list[str], instant: float, recovered: Recovered
) -> None:
    client = server.client()
    job = create_job(client, epochs=EPOCHS)
    wait_for_step(client, job.id, step_at(instant))

    os.kill(server.trainers()[0], signal.SIGKILL)
    recovered(seconds_until_resumed(client, job.id))

    assert_as_undisturbed(client, job.id, undisturbed)
    assert any("killed by SIGKILL" in message for message in messages(client, job.id))


def test_f5_a_killed_parent_takes_its_trainer_along(
    install: Install, undisturbed: list[str], instant: float, recovered: Recovered
) -> None:
    installation = install()  # with a lease that is never waited for: the machine knows who is dead
    with installation.serving() as first:
        job = create_job(first.client(), epochs=EPOCHS)
        wait_for_step(first.client(), job.id, step_at(instant))
        (trainer,) = first.trainers()
        first.kill()
        wait_for(lambda: not is_alive(trainer), seconds=1)

    with installation.serving() as second:
        client = second.client()
        ready_at = time.monotonic()
        wait_for_status(client, job.id, "running", seconds=10)  # far less than the lease
        recovered(time.monotonic() - ready_at)
        assert_as_undisturbed(client, job.id, undisturbed)
        assert "The worker process died; the job will be tried again" in messages(client, job.id)
        assert RESUMED in messages(client, job.id)
    assert_numbered(installation, job.id)


def test_f5_five_crashes_change_no_figure(install: Install, undisturbed: list[str], instant: float) -> None:
    """Workers and trainers in turn, each somewhere in its sixth of the run, after the one before has been overcome."""
    installation = install()
    strikes = [2 + int((sixth + instant) * (STEPS - 8) / 6) for sixth in range(5)]
    with installation.serving("--api-only") as api:
        client = api.client()
        job = create_job(client, epochs=EPOCHS)
        for trainer_at, worker_at in ((None, strikes[0]), strikes[1:3], strikes[3:5]):
            with installation.working() as worker:
                if trainer_at is not None:
                    wait_for_step(client, job.id, trainer_at)
                    os.kill(worker.trainers()[0], signal.SIGKILL)
                wait_for_step(client, job.id, worker_at)
                worker.kill()
        with installation.working():
            assert_as_undisturbed(client, job.id, undisturbed)
        told = messages(client, job.id)
        assert sum("will be tried again" in message for message in told) == 5
        assert told.count(RESUMED) == 5
    assert_numbered(installation, job.id)


def test_f22_a_job_that_always_kills_fails_with_a_reason_and_others_go_on(install: Install) -> None:
    """4000 rows: a thousand steps to the first checkpoint, so that no crash is forgiven."""
    with install().serving() as server:
        client = server.client()
        job = create_job(
            client, epochs=1, train=rows(4000), extra_body={"hone": {"checkpoint_interval_steps": 100_000}}
        )
        for crashes in range(3):
            # What was read of the last trainer is on record once its crash is: beyond that the next one is at work.
            wait_for(lambda crashes=crashes: deaths(client, job.id) == crashes, seconds=30)
            wait_for_step(client, job.id, furthest(client, job.id) + 1)
            os.kill(server.trainers()[0], signal.SIGKILL)
        ended = wait_for_end(client, job.id)
        assert ended.status == "failed"
        assert ended.error is not None
        assert ended.error.code == "worker_crashed"
        assert "3 crashes without a new checkpoint" in (ended.error.message or "")
        assert stored(server.installation, job.id)[0].crashes == 3

        other = create_job(client, epochs=1)
        assert wait_for_end(client, other.id).status == "succeeded"
        assert DONE in messages(client, other.id)
    assert_numbered(server.installation, job.id)


def furthest(client: OpenAI, job_id: str) -> int:
    return client.fine_tuning.jobs.retrieve(job_id).to_dict()["hone"]["current_step"]  # pyright: ignore


def deaths(client: OpenAI, job_id: str) -> int:
    return sum("killed by SIGKILL" in message for message in messages(client, job_id))


def test_f27_a_trainer_that_stops_moving_is_noticed(
    install: Install, undisturbed: list[str], instant: float, recovered: Recovered
) -> None:
    with install(progress_timeout_seconds="5").serving() as server:
        client = server.client()
        job = create_job(client, epochs=EPOCHS)
        wait_for_step(client, job.id, step_at(instant))

        os.kill(server.trainers()[0], signal.SIGSTOP)
        recovered(seconds_until_resumed(client, job.id))

        assert_as_undisturbed(client, job.id, undisturbed)
        assert any("Training made no progress for 5 seconds" in message for message in messages(client, job.id))
