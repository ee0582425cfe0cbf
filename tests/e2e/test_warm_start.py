"""A trainer does its imports before there is a job for it, and gives its base back when nobody needs it."""

from collections.abc import Callable

from tests.e2e.processes import Installation, create_job, metrics, wait_for, wait_for_end


def test_a_trainer_is_ready_before_a_job_is_claimed_and_again_after_it_has_been_idle(
    install: Callable[..., Installation],
) -> None:
    with install(trainer_idle_seconds="1").serving() as server:
        client = server.client()
        first = metrics(client, wait_for_end(client, create_job(client, epochs=1).id))
        lines = server.output.read_text().splitlines()
        told = [
            next(number for number, line in enumerate(lines) if text in line) for text in ("is ready", "claimed by")
        ]
        assert told == sorted(told)
        (holding,) = server.trainers()

        # Idle, it is replaced by one that holds no base but has done its imports.
        wait_for(lambda: server.output.read_text().count("is ready") == 2, seconds=90)
        (fresh,) = server.trainers()
        assert fresh != holding

        assert metrics(client, wait_for_end(client, create_job(client, epochs=1).id)) == first
