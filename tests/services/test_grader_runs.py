"""Python graders that wait for workers: who takes one, and what becomes of those that nobody answers."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app.auth import Principal
from app.db.models import GraderRun
from app.db.queries import scoped
from app.resources import Resources
from app.services import grader_runs, graders, workers
from app.services.grader_runs import Claim
from tests import factories
from tests.servers import required
from worker import grader_runner
from worker.contract.graders import Multi, Python
from worker.graders import sandbox
from worker.graders.sandbox import Limits, Sandbox

REQUEST: dict[str, Any] = {"source": "def grade(sample, item): return item['x']", "sample": {}, "item": {"x": 0.5}}


@pytest.fixture
async def principal(resources: Resources) -> Principal:
    return (await factories.project(resources))[0]


async def add(resources: Resources, principal: Principal, *, lives_seconds: float = 60) -> str:
    async with resources.write() as session:
        return await grader_runs.add(session, principal, request=REQUEST, lives_seconds=lives_seconds)


async def claim(resources: Resources, owner: str = "w/0") -> Claim | None:
    async with resources.write() as session:
        return await grader_runs.claim(session, owner=owner, ttl_seconds=30)


async def change(resources: Resources, principal: Principal, **columns: Any) -> None:
    async with resources.write() as session:
        for run in await session.scalars(scoped(GraderRun, principal)):
            for name, value in columns.items():
                setattr(run, name, value(run))


async def answer(resources: Resources, principal: Principal, run_id: str) -> dict[str, Any] | None:
    async with resources.read() as session:
        return await grader_runs.result(session, principal, run_id=run_id)


async def runs(resources: Resources, principal: Principal) -> list[GraderRun]:
    async with resources.read() as session:
        return list(await session.scalars(scoped(GraderRun, principal)))


async def let_leases_run_out(resources: Resources, principal: Principal) -> None:
    await change(resources, principal, lease_expires_at=lambda run: run.created_at - timedelta(seconds=1))


async def test_a_run_is_claimed_once(resources: Resources, principal: Principal) -> None:
    run_id = await add(resources, principal)
    claims = await asyncio.gather(*(claim(resources, f"w/{n}") for n in range(4)))
    held = [one for one in claims if one is not None]
    assert [(one.run_id, one.request) for one in held] == [(run_id, REQUEST)]


async def test_a_dead_worker_is_followed_by_one_other(resources: Resources, principal: Principal) -> None:
    run_id = await add(resources, principal)
    first = await claim(resources)
    await let_leases_run_out(resources, principal)
    second = await claim(resources, "v/0")
    assert first is not None
    assert second is not None
    async with resources.write() as session:  # the first was only slow
        assert not await grader_runs.renew(session, first, ttl_seconds=30)
        await grader_runs.answer(session, first, result={"reward": 1.0})
    assert await answer(resources, principal, run_id) is None
    async with resources.write() as session:
        await grader_runs.answer(session, second, result={"reward": 0.25})
    assert await answer(resources, principal, run_id) == {"reward": 0.25}
    assert await claim(resources) is None


async def test_what_kills_two_workers_gets_no_third(resources: Resources, principal: Principal) -> None:
    await add(resources, principal)
    for _ in range(2):
        assert await claim(resources) is not None
        await let_leases_run_out(resources, principal)
    assert await claim(resources) is None


async def test_a_worker_that_leaves_is_not_counted(resources: Resources, principal: Principal) -> None:
    await add(resources, principal)
    for _ in range(3):
        held = await claim(resources)
        assert held is not None
        async with resources.write() as session:
            await grader_runs.give_back(session, held)


async def test_projects_take_turns(resources: Resources, principal: Principal) -> None:
    other, _ = await factories.project(resources)
    mine = [await add(resources, principal) for _ in range(3)]
    theirs = await add(resources, other)
    taken = [one.run_id for _ in range(4) if (one := await claim(resources)) is not None]
    assert taken == [mine[0], theirs, *mine[1:]]


async def test_a_project_has_only_so_many(resources: Resources, principal: Principal) -> None:
    for _ in range(grader_runs.MOST_OF_A_PROJECT):
        await add(resources, principal)
    with pytest.raises(grader_runs.TooManyRuns):
        await add(resources, principal)
    held = await claim(resources)
    assert held is not None
    async with resources.write() as session:
        await grader_runs.answer(session, held, result={"reward": 1.0})
    await add(resources, principal)  # what has its answer is only fetched


async def test_a_request_that_ends_early_leaves_no_run(resources: Resources, principal: Principal) -> None:
    """As the parts of a multi grader do when one of them has failed: both are cancelled."""
    able = replace(resources, settings=resources.settings.model_copy(update={"python_graders": True}))
    async with resources.write() as session:
        await workers.report(session, factories.description("w", kinds=[workers.PYTHON_GRADERS]))
    parts = [Python(type="python", name=name, source=REQUEST["source"]) for name in ("a", "b")]
    multi = Multi(type="multi", name="m", graders=list(parts), calculate_output="a + b")
    running = asyncio.create_task(graders.run(able, principal, grader=multi, sample="", item={}))
    while len(await runs(resources, principal)) < 2:
        assert not running.done()
        await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await runs(resources, principal) == []


async def test_what_nobody_waits_for_is_neither_run_nor_kept(resources: Resources, principal: Principal) -> None:
    run_id = await add(resources, principal)
    await change(resources, principal, expires_at=lambda run: run.created_at - timedelta(seconds=1))
    assert await claim(resources) is None
    async with resources.write() as session:
        await grader_runs.remove_expired(session)
    async with resources.read() as session:
        assert (await session.scalars(scoped(GraderRun, principal).where(GraderRun.id == run_id))).all() == []


async def test_nobody_reads_another_projects_run(resources: Resources, principal: Principal) -> None:
    other, _ = await factories.project(resources)
    run_id = await add(resources, principal)
    held = await claim(resources)
    assert held is not None
    async with resources.write() as session:
        await grader_runs.answer(session, held, result={"reward": 1.0})
        await grader_runs.remove(session, other, run_id=run_id)
    assert await answer(resources, other, run_id) is None
    assert await answer(resources, principal, run_id) == {"reward": 1.0}


async def test_a_worker_that_drains_gives_its_run_back(resources: Resources, principal: Principal) -> None:
    required.skip_without("bubblewrap")
    box = sandbox.bubblewrap(Limits(seconds=30))
    assert isinstance(box, Sandbox)
    source = "import time\ndef grade(sample, item): time.sleep(20)"
    async with resources.write() as session:
        await grader_runs.add(session, principal, request=REQUEST | {"source": source}, lives_seconds=60)
    draining = asyncio.Event()
    running = asyncio.create_task(grader_runner.run(resources, owner="w", sandbox=box, draining=draining))
    while True:
        await asyncio.sleep(0.05)
        async with resources.read() as session:
            if (await session.scalars(scoped(GraderRun, principal))).one().attempts:
                break
    draining.set()
    await asyncio.wait_for(running, 15)
    async with resources.read() as session:
        run = (await session.scalars(scoped(GraderRun, principal))).one()
    assert (run.attempts, run.lease_owner, run.result) == (0, None, None)
