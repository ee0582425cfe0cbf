"""What a job uses is counted once, on its day, and up to the last sign of life of whoever worked on it."""

from datetime import UTC, datetime, timedelta

import pytest

from app.auth import Principal
from app.db.models import Job, JobStatus
from app.db.queries import View, database_now
from app.db.usage_models import Measure
from app.resources import Resources
from app.services import jobs, leases, metering, usage
from app.services.leases import Lease
from app.services.usage import Line
from tests import factories
from worker import step_records
from worker.contract.events import Step
from worker.step_records import StepRecord

DAY = timedelta(days=1)


async def claim(resources: Resources, *, gpus: int = 0) -> Lease:
    async with resources.write() as session:
        claimed = await leases.claim(session, owner="worker-a/0", status=JobStatus.QUEUED, ttl_seconds=30, gpus=gpus)
    assert claimed is not None
    return claimed[0]


async def began(resources: Resources, lease: Lease, ago: timedelta) -> None:
    """As if the lease had been taken so long ago."""
    async with resources.write() as session:
        job, now = await leases.hold(session, lease)
        job.meter_started_at = now - ago


async def take_steps(resources: Resources, lease: Lease, *numbers: int, at: datetime | None = None) -> None:
    records = [StepRecord(step(number)) for number in numbers]
    async with resources.write() as session:
        job, now = await leases.hold(session, lease)
        await step_records.write(session, job, records, seconds_a_step=1.0, now=at or now)


def step(number: int) -> Step:
    return Step(
        run="run",
        step=number,
        epoch=1,
        loss=0.5,
        token_accuracy=0.5,
        learning_rate=0.001,
        gradient_norm=1.0,
        tokens=100,
        trained_tokens=40,
        seconds=0.1,
    )


async def give_back(resources: Resources, lease: Lease) -> None:
    async with resources.write() as session:
        job, now = await leases.hold(session, lease)
        leases.hand_back(session, job, message="back", now=now)


async def lines(resources: Resources, principal: Principal) -> list[Line]:
    async with resources.read() as session:
        now = await database_now(session)
        view = View(project_id=principal.project_id)
        return await usage.lines(session, view, start=metering.day_of(now) - 5 * DAY, end=now + DAY)


async def total(resources: Resources, principal: Principal, measure: Measure) -> int:
    return usage.total(await lines(resources, principal), measure)


@pytest.mark.parametrize(
    ("gpus", "measure", "times"),
    [(0, Measure.CPU_MILLISECONDS, 1), (1, Measure.GPU_MILLISECONDS, 1), (4, Measure.GPU_MILLISECONDS, 4)],
)
async def test_a_lease_counts_its_seconds_for_each_device(
    resources: Resources, gpus: int, measure: Measure, times: int
) -> None:
    principal, _ = await factories.project(resources)
    await factories.job(resources, principal)
    lease = await claim(resources, gpus=gpus)
    await began(resources, lease, timedelta(seconds=20))
    while_it_runs = await total(resources, principal, measure)
    await give_back(resources, lease)
    found = await lines(resources, principal)
    assert {(line.project_id, line.model, line.measure) for line in found} == {
        (principal.project_id, factories.BASE_MODEL, measure)
    }
    assert 20_000 * times <= while_it_runs <= usage.total(found, measure) <= 25_000 * times


async def test_each_attempt_counts_its_time_and_each_step_its_tokens_once(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await factories.job(resources, principal)
    first = await claim(resources, gpus=1)
    await began(resources, first, timedelta(seconds=10))
    await take_steps(resources, first, 1, 2, 3)
    await give_back(resources, first)
    second = await claim(resources, gpus=1)
    await began(resources, second, timedelta(seconds=10))
    await take_steps(resources, second, 2, 3, 4)
    assert await total(resources, principal, Measure.TRAINED_TOKENS) == 400
    await give_back(resources, second)
    assert await total(resources, principal, Measure.TRAINED_TOKENS) == 400
    assert 20_000 <= await total(resources, principal, Measure.GPU_MILLISECONDS) <= 25_000


async def test_a_worker_that_dies_is_counted_up_to_its_last_sign_of_life(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    job = await factories.job(resources, principal)
    lease = await claim(resources, gpus=1)
    await began(resources, lease, timedelta(seconds=60))
    async with resources.write() as session:
        row = await session.get_one(Job, job.id)
        assert row.meter_started_at is not None
        row.meter_seen_at = row.meter_started_at + timedelta(seconds=12)
        row.lease_expires_at = row.meter_seen_at
    async with resources.write() as session:
        (expired,) = await leases.expired(session)
        leases.crashed(session, expired, reason="silent", max_crashes=3, now=await database_now(session))
    assert await total(resources, principal, Measure.GPU_MILLISECONDS) == 12_000


async def test_a_heartbeat_is_a_sign_of_life(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    job = await factories.job(resources, principal)
    lease = await claim(resources, gpus=1)
    async with resources.write() as session:
        row = await session.get_one(Job, job.id)
        row.meter_started_at = row.meter_seen_at = await database_now(session) - timedelta(seconds=30)
    assert await total(resources, principal, Measure.GPU_MILLISECONDS) == 0
    async with resources.write() as session:
        await leases.renew(session, [lease], ttl_seconds=30)
    assert await total(resources, principal, Measure.GPU_MILLISECONDS) >= 30_000


async def test_midnight_parts_time_and_tokens(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await factories.job(resources, principal)
    lease = await claim(resources, gpus=2)
    async with resources.read() as session:
        today = metering.day_of(await database_now(session))
    await took(resources, lease, today - DAY - timedelta(hours=1))
    await take_steps(resources, lease, 1, at=today - timedelta(hours=30))
    await take_steps(resources, lease, 2, 3, at=today + timedelta(seconds=1))
    await give_back(resources, lease)
    found = await lines(resources, principal)
    by_day = {(line.day, line.measure): line.amount for line in found if line.measure != Measure.JOBS_SUCCEEDED}
    before, yesterday = today - 2 * DAY, today - DAY
    assert by_day[before, Measure.GPU_MILLISECONDS] == 2 * 3600 * 1000
    assert by_day[yesterday, Measure.GPU_MILLISECONDS] == 2 * 24 * 3600 * 1000
    assert by_day[today, Measure.GPU_MILLISECONDS] >= 0
    assert by_day[before, Measure.TRAINED_TOKENS] == 100
    assert by_day[today, Measure.TRAINED_TOKENS] == 200


async def took(resources: Resources, lease: Lease, at: datetime) -> None:
    async with resources.write() as session:
        job, _ = await leases.hold(session, lease)
        job.meter_started_at = at


async def test_jobs_count_by_how_they_end(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    waiting = await factories.job(resources, principal)
    async with resources.write() as session:
        await jobs.cancel(session, principal, job_id=waiting.id)
    crashing = await factories.job(resources, principal, crashes=2)
    await claim(resources)
    async with resources.write() as session:
        row = await session.get_one(Job, crashing.id)
        leases.crashed(session, row, reason="again", max_crashes=3, now=await database_now(session))
    found = await lines(resources, principal)
    assert usage.total(found, Measure.JOBS_CANCELLED) == 1
    assert usage.total(found, Measure.JOBS_FAILED) == 1
    assert usage.total(found, Measure.JOBS_SUCCEEDED) == 0


async def test_a_cancelled_run_counts_until_then(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    job = await factories.job(resources, principal)
    lease = await claim(resources, gpus=1)
    await began(resources, lease, timedelta(seconds=15))
    async with resources.write() as session:
        await jobs.cancel(session, principal, job_id=job.id)
    assert 15_000 <= await total(resources, principal, Measure.GPU_MILLISECONDS) <= 20_000
    async with resources.read() as session:
        row = await session.get_one(Job, job.id)
    assert (row.meter_started_at, row.meter_seen_at, row.meter_gpus, row.meter_tokens) == (None, None, 0, 0)


async def test_validation_uses_no_slot(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await factories.job(resources, principal, status=JobStatus.VALIDATING_FILES)
    async with resources.write() as session:
        claimed = await leases.claim(
            session, owner="worker-a/validator", status=JobStatus.VALIDATING_FILES, ttl_seconds=30
        )
    assert claimed is not None
    await give_back(resources, claimed[0])
    assert await lines(resources, principal) == []


async def test_stored_bytes_are_recorded_once_a_day_and_objects_that_are_shared_once(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    held = await factories.file(resources, principal, content=b"x" * 1000)
    _, model = await factories.succeeded_job(resources, principal)
    expected = 0
    async for page in resources.storage.list_objects(""):
        expected += sum([(await resources.storage.stat(info.key)).bytes for info in page])
    assert held.bytes + model.adapter_bytes <= expected
    async with resources.write() as session:
        assert await usage.record_stored_bytes(session) == 1
    async with resources.write() as session:
        assert await usage.record_stored_bytes(session) == 0
    (line,) = [one for one in await lines(resources, principal) if one.measure == Measure.STORED_BYTES]
    assert (line.amount, line.model, line.day.tzinfo) == (expected, None, UTC)


def test_days_are_those_of_utc() -> None:
    moment = datetime.fromisoformat("2026-03-01T01:30:00+02:00")
    assert metering.day_of(moment) == datetime(2026, 2, 28, tzinfo=UTC)
