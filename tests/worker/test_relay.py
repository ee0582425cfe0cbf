"""From events to rows: merged, in order, and never twice."""

import asyncio
import shutil
from pathlib import Path

import pytest

from app.db.models import Checkpoint as CheckpointRow
from app.db.models import Event, Job, StepMetric
from app.db.queries import of_job
from app.resources import Resources
from app.services import leases
from app.services.leases import LeaseLost
from tests import factories
from tests.worker.holding import held_job
from worker import checkpoints, step_records
from worker.contract.events import Adjusted, Checkpoint, Evaluation, Started, Step
from worker.contract.spec import Execution
from worker.log_tail import LogTail
from worker.relay import Relay

EXECUTION = Execution(device="cpu", dtype="float32", token_budget=512, num_threads=1)


def step(number: int, loss: float = 1.0) -> Step:
    return Step(
        run="r",
        step=number,
        epoch=1,
        loss=loss,
        token_accuracy=0.5,
        learning_rate=1e-3,
        gradient_norm=1.0,
        tokens=100,
        trained_tokens=40,
        seconds=0.1,
    )


def evaluation(number: int) -> Evaluation:
    return Evaluation(run="r", step=number, kind="full_valid", loss=2.0, token_accuracy=0.25)


async def make_relay(resources: Resources, tmp_path: Path) -> Relay:
    lease = await held_job(resources, spec={"execution": None})
    log = LogTail(resources, lease, tmp_path / "log", tmp_path / "scratch", 1000)
    relay = Relay(resources, lease, log)
    await relay.started(
        Started(run="r", execution=EXECUTION, total_steps=3, resumed_from_step=0, trainable_parameters=1)
    )
    return relay


def checkpoint(tmp_path: Path, number: int) -> Checkpoint:
    directory = tmp_path / f"step-{number}"
    for part in ("adapter", "state"):
        (directory / part).mkdir(parents=True)
        (directory / part / "weights").write_bytes(bytes([number]) * 100)
    return Checkpoint(run="r", step=number, epoch_end=False, directory=str(directory))


async def test_steps_become_metrics_and_events_once(resources: Resources, tmp_path: Path) -> None:
    relay = await make_relay(resources, tmp_path)
    job_id = relay.lease.job_id
    relay.take(step(1))
    relay.take(evaluation(2))
    relay.take(step(2))
    await relay.drain()
    relay.take(step(2, loss=9.0))  # as a resumed run repeats it
    relay.take(step(3))
    await relay.drain()

    async with resources.read() as session:
        job = await session.get_one(Job, job_id)
        metrics = await step_records.all_metrics(session, job_id)
        told = list(
            await session.scalars(of_job(Event, job_id).where(Event.type == "metrics").order_by(Event.sequence))
        )
    assert job.current_step == 3
    assert job.spec == {"execution": EXECUTION.model_dump()}
    assert [(row.step, row.kind) for row in metrics if row.kind == "train"] == [
        (1, "train"),
        (2, "train"),
        (3, "train"),
    ]
    assert [event.message for event in told] == [
        "Step 1/3: training loss=1.00",
        "Step 2/3: training loss=1.00, full validation loss=2.00",
        "Step 3/3: training loss=1.00",
    ]
    assert step_records.as_csv(metrics).splitlines()[2] == "2,1.00000,0.50000,,,2.00000,0.25000,0.001,100,40"


async def test_a_checkpoint_comes_after_its_steps_and_ends_a_row_of_crashes(
    resources: Resources, tmp_path: Path
) -> None:
    relay = await make_relay(resources, tmp_path)
    async with resources.write() as session:
        job, _ = await leases.hold(session, relay.lease)
        job.crashes = 2
    relay.take(step(1))
    relay.take(checkpoint(tmp_path, 1))
    running = asyncio.create_task(relay.run())
    while True:
        async with resources.read() as session:
            rows = list(await session.scalars(of_job(CheckpointRow, relay.lease.job_id)))
            job = await session.get_one(Job, relay.lease.job_id)
            metrics = list(await session.scalars(of_job(StepMetric, relay.lease.job_id)))
        if rows:
            break
        await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [row.step for row in metrics] == [1]
    assert rows[0].metrics == {"step": 1, "train_loss": 1.0, "train_mean_token_accuracy": 0.5}
    assert rows[0].model_name.endswith(":ckpt-step-1")
    assert job.crashes == 0


async def test_the_newest_whole_checkpoint_is_restored(resources: Resources, tmp_path: Path) -> None:
    relay = await make_relay(resources, tmp_path)
    job_id = relay.lease.job_id
    for number in (1, 2):
        relay.take(step(number))
        relay.take(checkpoint(tmp_path, number))
    await relay.drain()
    restored = await checkpoints.restore(resources, job_id, tmp_path)
    assert restored is not None
    assert (restored / "state" / "weights").read_bytes() == bytes([2]) * 100

    damaged = relay.lease.object_key("checkpoints/2/state.zip")
    whole = b"".join([chunk async for chunk in resources.storage.read(damaged)])
    await factories.stored(resources, damaged, whole[:-10])
    shutil.rmtree(restored)
    restored = await checkpoints.restore(resources, job_id, tmp_path)
    assert restored is not None
    assert (restored / "adapter" / "weights").read_bytes() == bytes([1]) * 100

    # The run goes back, and makes the damaged one anew.
    relay.take(checkpoint(tmp_path, 2))
    await relay.drain()
    async with resources.read() as session:
        assert len(list(await session.scalars(of_job(CheckpointRow, job_id)))) == 2
    shutil.rmtree(restored)
    restored = await checkpoints.restore(resources, job_id, tmp_path)
    assert restored is not None
    assert restored.name == "resume-2"


async def test_a_lost_lease_ends_the_relay(resources: Resources, tmp_path: Path) -> None:
    relay = await make_relay(resources, tmp_path)
    async with resources.write() as session:
        job = await session.get_one(Job, relay.lease.job_id)
        leases.revoke(session, job)
    relay.take(step(1))
    with pytest.raises(LeaseLost):
        await relay.drain()


async def test_an_adjusted_execution_replaces_the_one_the_run_began_with(resources: Resources, tmp_path: Path) -> None:
    relay = await make_relay(resources, tmp_path)
    smaller = EXECUTION.model_copy(update={"token_budget": 256})
    await relay.adjusted(Adjusted(run="r", execution=smaller))
    async with resources.read() as session:
        job = await session.get(Job, relay.lease.job_id)
    assert job is not None
    assert job.spec is not None
    assert job.spec["execution"] == smaller.model_dump()
