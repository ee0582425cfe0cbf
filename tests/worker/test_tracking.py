"""From rows to trackers, beside a run: what is sent, what is remembered, and that a run waits for none of it."""

import asyncio
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.db.models import Event, Job, JobStatus
from app.db.queries import of_job
from app.resources import Resources, open_resources
from app.services import job_states, leases
from app.services.leases import Lease
from tests.backends import Site
from tests.servers import trackers
from tests.worker.holding import held_job
from tests.worker.test_relay import EXECUTION, evaluation, step
from worker.contract.events import Started
from worker.log_tail import LogTail
from worker.relay import Relay
from worker.tracking import Trackings

WANDB: list[dict[str, Any]] = [{"type": "wandb", "wandb": {"project": "p", "name": None, "entity": None, "tags": None}}]
KEY = "0123456789abcdef0123456789abcdef01234567"


@asynccontextmanager
async def opened(site: Site, **settings: Any) -> AsyncIterator[Resources]:
    async with open_resources(site.settings(**settings)) as resources:
        yield resources


async def job_of(resources: Resources, lease: Lease) -> tuple[Job, list[Event]]:
    async with resources.read() as session:
        job = await session.get_one(Job, lease.job_id)
        told = await session.scalars(of_job(Event, lease.job_id).order_by(Event.sequence))
        return job, [event for event in told if event.type == "message"]


async def take_steps(resources: Resources, lease: Lease, tmp_path: Path, first: int, last: int) -> Trackings:
    """A run of these steps, up to the release of its lease; its trackers are still at work."""
    trackings = Trackings(resources, tmp_path / "trackers")
    async with resources.read() as session:
        job = await session.get_one(Job, lease.job_id)
    with trackings.of_run(lease, job) as tracking:
        log = LogTail(resources, lease, tmp_path / "log", tmp_path / "scratch", 1000)
        relay = Relay(resources, lease, log, when_written=tracking.tell)
        await relay.started(
            Started(run="r", execution=EXECUTION, total_steps=last, resumed_from_step=0, trainable_parameters=1)
        )
        for number in range(first, last + 1):
            if number == last:
                relay.take(evaluation(number))
            relay.take(step(number, loss=1 / number))
        await relay.drain()
    return trackings


async def end(resources: Resources, lease: Lease, status: JobStatus, message: str) -> None:
    async with resources.write() as session:
        job, now = await leases.hold(session, lease)
        job_states.move(session, job, status, message=message, now=now)
        leases.release(session, job)


async def until(trackings: Trackings, resources: Resources, lease: Lease, name: str, field: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        job, _ = await job_of(resources, lease)
        found = (job.tracker_runs or {}).get(name, {})
        if found.get(field):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


async def test_a_run_with_three_trackers(site: Site, tmp_path: Path) -> None:
    places = {
        "wandb_offline": True,
        "mlflow_tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "tensorboard_directory": tmp_path / "board",
    }
    async with opened(site, **places) as resources:
        asked = {"trackers": {"mlflow": {}, "tensorboard": {}}}
        lease = await held_job(resources, spec={"execution": None}, integrations=WANDB, extension=asked)
        first = await take_steps(resources, lease, tmp_path, 1, 3)
        async with resources.write() as session:
            job, now = await leases.hold(session, lease)
            leases.hand_back(session, job, message="interrupted", now=now)
        await first.close()
        async with resources.write() as session:
            claimed = await leases.claim(session, owner="worker-2/0", status=JobStatus.QUEUED, ttl_seconds=60)
        assert claimed is not None
        second = await take_steps(resources, claimed[0], tmp_path, 4, 5)
        await end(resources, claimed[0], JobStatus.SUCCEEDED, "The job has successfully completed")
        await second.close()

        job, told = await job_of(resources, lease)
        assert {event.level for event in told} == {"info"}
        assert set(job.tracker_runs or {}) == {"wandb", "mlflow", "tensorboard"}
        assert (job.tracker_runs or {})["wandb"] == {"run_id": job.id, "url": None, "error": None}
        losses = [(n, 1 / n) for n in range(1, 6)]
        board = trackers.scalars(tmp_path / "board" / job.project_id / job.id)
        assert board["train_loss"] == [(n, pytest.approx(loss)) for n, loss in losses]
        assert board["full_valid_loss"] == [(3, 2.0), (5, 2.0)]
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            rows = database.execute("select step, value from metrics where key = 'train_loss' order by step")
            assert rows.fetchall() == losses
            assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        kept = sorted((site.data / "wandb").rglob("run-*.wandb"))
        assert len(kept) == 2  # one for each worker, of the same run: wandb puts them together
        assert {path.name for path in kept} == {f"run-{job.id}.wandb"}
        assert list((tmp_path / "trackers").iterdir()) == []


@pytest.fixture
def silent_server() -> Iterator[str]:
    """It takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_tracker_that_hangs_is_one_warning_and_no_delay(site: Site, tmp_path: Path, silent_server: str) -> None:
    settings = {"wandb_api_key": KEY, "wandb_base_url": silent_server, "tracker_timeout_seconds": 3}
    async with opened(site, **settings) as resources:
        lease = await held_job(resources, spec={"execution": None}, integrations=WANDB)
        began = time.monotonic()
        trackings = await take_steps(resources, lease, tmp_path, 1, 3)
        assert time.monotonic() - began < 3
        found = await until(trackings, resources, lease, "wandb", "error")
        again = await take_steps(resources, lease, tmp_path, 4, 5)  # as after a crash
        await asyncio.sleep(4)
        await end(resources, lease, JobStatus.SUCCEEDED, "The job has successfully completed")
        await trackings.close()
        await again.close()

        job, told = await job_of(resources, lease)
        assert found["error"] == "no answer within 3 seconds"
        assert [event.message for event in told if event.level == "warn"] == [
            "The integration wandb failed, and gets no more figures of this run; the job goes on: "
            "no answer within 3 seconds"
        ]
        assert job.current_step == 5


async def test_a_key_is_in_no_message(site: Site, tmp_path: Path) -> None:
    secret = f"http://me:{KEY}@127.0.0.1:1"
    async with opened(site, mlflow_tracking_uri=secret) as resources:
        lease = await held_job(resources, spec={"execution": None}, extension={"trackers": {"mlflow": {}}})
        trackings = await take_steps(resources, lease, tmp_path, 1, 1)
        found = await until(trackings, resources, lease, "mlflow", "error")
        assert "127.0.0.1" in found["error"]
        assert KEY not in found["error"]
        await trackings.close()


async def test_a_worker_without_the_settings_says_so_at_once(site: Site, tmp_path: Path) -> None:
    async with opened(site) as resources:
        lease = await held_job(resources, spec={"execution": None}, integrations=[*WANDB, *WANDB])
        trackings = await take_steps(resources, lease, tmp_path, 1, 1)
        await trackings.close()
        job, told = await job_of(resources, lease)
        assert job.tracker_runs is not None
        assert {name: run["error"] for name, run in job.tracker_runs.items()} == {
            "wandb": "the worker has no settings for it",
            "wandb-2": "the worker has no settings for it",
        }
        assert len([event for event in told if event.level == "warn"]) == 2


async def test_nothing_follows_the_end_of_a_job(site: Site, tmp_path: Path) -> None:
    async with opened(site, mlflow_tracking_uri="http://127.0.0.1:1") as resources:
        lease = await held_job(resources, spec={"execution": None}, extension={"trackers": {"mlflow": {}}})
        trackings = await take_steps(resources, lease, tmp_path, 1, 1)
        await end(resources, lease, JobStatus.SUCCEEDED, "The job has successfully completed")
        await until(trackings, resources, lease, "mlflow", "error")
        await trackings.close()
        _, told = await job_of(resources, lease)
        assert told[-1].message == "The job has successfully completed"
