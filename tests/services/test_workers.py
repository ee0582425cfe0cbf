"""What workers say of themselves, and what is made of it."""

from datetime import timedelta

import pytest

from app.db.models import Worker, WorkerState
from app.db.queries import database_now, server_rows
from app.errors import NotFound
from app.resources import Resources
from app.services import workers
from tests import factories

TTL = 30.0


async def report(resources: Resources, worker_id: str = "worker-a", **values: object) -> bool:
    async with resources.write() as session:
        return await workers.report(session, factories.description(worker_id, **values))


async def age(resources: Resources, worker_id: str, by: timedelta) -> None:
    async with resources.write() as session:
        row = (await session.execute(server_rows(Worker).where(Worker.id == worker_id))).scalar_one()
        row.heartbeat_at = await database_now(session) - by


async def search(resources: Resources) -> dict[str, workers.Seen]:
    async with resources.read() as session:
        return {seen.row.id: seen for seen in await workers.search(session, silent_seconds=TTL)}


async def test_a_worker_is_shown_as_it_last_described_itself(resources: Resources) -> None:
    await report(resources, state=WorkerState.STARTING)
    began = (await search(resources))["worker-a"].row
    await report(resources, state=WorkerState.READY, unavailable_bases={"big": "no such directory"})
    now = (await search(resources))["worker-a"].row
    assert (began.state, now.state) == (WorkerState.STARTING, WorkerState.READY)
    assert now.unavailable_bases == {"big": "no such directory"}
    assert now.started_at == began.started_at
    assert now.heartbeat_at > began.heartbeat_at


async def test_a_slots_job_is_told_by_its_lease(resources: Resources) -> None:
    await report(resources, "worker-a")
    await report(resources, "worker-ab")
    principal, _ = await factories.project(resources)
    job = await factories.job(resources, principal, lease_owner="worker-ab/0")
    found = await search(resources)
    assert found["worker-a"].jobs == {}
    assert found["worker-ab"].jobs == {"worker-ab/0": job.id}


async def test_a_silent_worker_is_dead_and_forgotten_after_a_day(resources: Resources) -> None:
    for worker_id, silent in (("alive", 1), ("dead", 31), ("long-dead", 25 * 3600)):
        await report(resources, worker_id)
        await age(resources, worker_id, timedelta(seconds=silent))
    assert {name: seen.is_dead for name, seen in (await search(resources)).items()} == {
        "alive": False,
        "dead": True,
        "long-dead": True,
    }
    async with resources.write() as session:
        await workers.remove_long_dead(session)
    assert set(await search(resources)) == {"alive", "dead"}


async def test_a_request_to_drain_reaches_the_worker_and_stays(resources: Resources) -> None:
    assert not await report(resources)
    async with resources.write() as session:
        first = (await workers.drain(session, worker_id="worker-a", silent_seconds=TTL)).row.drain_requested_at
    async with resources.read() as session:
        assert await workers.is_asked_to_drain(session, "worker-a")
    assert await report(resources)
    async with resources.write() as session:
        again = (await workers.drain(session, worker_id="worker-a", silent_seconds=TTL)).row.drain_requested_at
    assert first == again
    with pytest.raises(NotFound):
        async with resources.write() as session:
            await workers.drain(session, worker_id="worker-b", silent_seconds=TTL)


async def test_a_worker_that_leaves_is_gone(resources: Resources) -> None:
    await report(resources)
    async with resources.write() as session:
        await workers.leave(session, "worker-a")
    assert await search(resources) == {}


async def test_a_pool_is_served_by_its_living_trainers_only(resources: Resources) -> None:
    await report(resources, "trains", pool="gpu-a")
    await report(resources, "checks", pool="gpu-b", kinds=["cpu"], slots=[])
    await report(resources, "dead", pool="gpu-c")
    await age(resources, "dead", timedelta(seconds=31))
    async with resources.read() as session:
        served = [
            pool
            for pool in "abc"
            if await workers.living(session, workers.TRAIN, pool=f"gpu-{pool}", silent_seconds=TTL)
        ]
    assert served == ["a"]
