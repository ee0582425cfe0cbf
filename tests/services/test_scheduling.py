"""Which job is next: priority, then fair share, then age with a bounded head start for a loaded base."""

import asyncio
import random
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from app.auth import Principal
from app.db.models import Job, JobStatus, Organization, Project
from app.db.usage_models import Measure
from app.ids import utc_now
from app.resources import Resources
from app.services import leases, metering, quotas
from app.services.leases import Lease
from app.services.scheduling import HEAD_START, PREEMPTION_PATIENCE, Caps, LoadedBase
from tests import factories

LOADED = LoadedBase(factories.BASE_MODEL, None)
LONG_AGO = utc_now() - timedelta(days=1)


async def add(resources: Resources, project: Principal, *, age: timedelta = timedelta(), **columns: Any) -> Job:
    return await factories.job(resources, project, created_at=LONG_AGO - age, queued_at=LONG_AGO, **columns)


async def claim(resources: Resources, **options: Any) -> Job | None:
    async with resources.write() as session:
        claimed = await leases.claim(
            session, **({"owner": "worker-a/0", "status": JobStatus.QUEUED, "ttl_seconds": 30.0} | options)
        )
    return claimed[1] if claimed else None


async def claimed_ids(resources: Resources, **options: Any) -> list[str]:
    """Everything that can be claimed, in the order in which it is."""
    found: list[str] = []
    while job := await claim(resources, **options):
        found.append(job.id)
    return found


async def succeed(resources: Resources, job: Job) -> None:
    async with resources.write() as session:
        held, _ = await leases.hold(session, Lease(job.project_id, job.id, "worker-a/0", job.fence))
        held.status = JobStatus.SUCCEEDED
        leases.release(session, held)


@pytest.fixture
async def projects(resources: Resources) -> list[Principal]:
    await factories.base_model(resources)
    await factories.base_model(resources, "other-base")
    return [(await factories.project(resources))[0] for _ in range(4)]


async def test_priority_goes_before_fair_share_and_age(resources: Resources, projects: list[Principal]) -> None:
    old = await add(resources, projects[0], age=timedelta(hours=1))
    urgent = [await add(resources, projects[1], priority=5), await add(resources, projects[1], priority=5)]
    idle = await add(resources, projects[2], priority=-1, age=timedelta(hours=2))
    assert set((order := await claimed_ids(resources))[:2]) == {job.id for job in urgent}
    assert order[2:] == [old.id, idle.id]


async def test_the_project_with_the_least_in_hand_is_next(resources: Resources, projects: list[Principal]) -> None:
    first, second, third, _ = projects
    for age in range(6):
        await add(resources, first, age=timedelta(hours=10 + age))
    await add(resources, second, age=timedelta(hours=1))
    await add(resources, second, age=timedelta(hours=2))
    await add(resources, third)
    jobs = [await claim(resources) for _ in range(9)]
    turns = [projects.index(next(p for p in projects if job and p.project_id == job.project_id)) for job in jobs]
    assert turns == [0, 1, 2, 0, 1, 0, 0, 0, 0]


async def test_what_has_ended_is_not_in_hand(resources: Resources, projects: list[Principal]) -> None:
    ages = iter(range(8, 0, -1))
    for project in (*projects[:2], *projects[:2]):
        await add(resources, project, age=timedelta(hours=next(ages)))
    turns: list[str] = []
    while job := await claim(resources):
        turns.append(job.project_id)
        await succeed(resources, job)
    assert turns == [projects[0].project_id, projects[1].project_id] * 2


async def test_validation_is_shared_fairly_as_well(resources: Resources, projects: list[Principal]) -> None:
    checked: dict[str, Any] = {"status": JobStatus.VALIDATING_FILES}
    await add(resources, projects[0], priority=9)  # what waits for training does not count
    assert await claim(resources) is not None
    many = [await add(resources, projects[0], age=timedelta(hours=9 - n), **checked) for n in range(2)]
    one = await add(resources, projects[1], **checked)
    assert await claimed_ids(resources, **checked) == [many[0].id, one.id, many[1].id]


async def test_a_pool_takes_its_own_jobs_only(resources: Resources, projects: list[Principal]) -> None:
    usual = await add(resources, projects[0])
    special = await add(resources, projects[0], pool="gpu-a")
    assert await claimed_ids(resources, pool="gpu-b") == []
    assert await claimed_ids(resources, pool="gpu-a") == [special.id]
    assert await claimed_ids(resources, pool="default") == [usual.id]


async def test_what_is_excluded_is_left_to_others(resources: Resources, projects: list[Principal]) -> None:
    here = await add(resources, projects[0])
    elsewhere = await add(resources, projects[0], base_model_id="other-base", age=timedelta(hours=1))
    assert await claimed_ids(resources, excluded_bases={"other-base"}, excluded_jobs={here.id}) == []
    assert await claimed_ids(resources, excluded_bases={"other-base"}) == [here.id]
    assert await claimed_ids(resources) == [elsewhere.id]


async def test_a_loaded_base_gives_a_bounded_head_start(resources: Resources, projects: list[Principal]) -> None:
    other = {"base_model_id": "other-base"}
    much_older = await add(resources, projects[0], age=HEAD_START + timedelta(seconds=5), **other)
    older = await add(resources, projects[1], age=HEAD_START - timedelta(seconds=5), **other)
    quantized = await add(resources, projects[2], age=timedelta(seconds=5), quantization="nf4")
    loaded = await add(resources, projects[3])
    order = await claimed_ids(resources, loaded=LOADED)
    assert order == [much_older.id, loaded.id, older.id, quantized.id]


async def test_a_loaded_base_goes_before_neither_priority_nor_fair_share(
    resources: Resources, projects: list[Principal]
) -> None:
    await add(resources, projects[0], age=timedelta(hours=1))
    assert await claim(resources) is not None
    urgent = await add(resources, projects[0], priority=1, base_model_id="other-base")
    fair = await add(resources, projects[1], base_model_id="other-base")
    loaded = await add(resources, projects[0], age=timedelta(seconds=9))
    assert await claimed_ids(resources, loaded=LOADED) == [urgent.id, fair.id, loaded.id]


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_starves_and_the_order_is_the_documented_one(resources: Resources, seed: int) -> None:
    """Many projects on three slots, jobs ending at random: each claim is the one that the rules name."""
    dice = random.Random(seed)
    for base in ("base-a", "base-b"):
        await factories.base_model(resources, base)
    projects = [(await factories.project(resources))[0] for _ in range(6)]
    waiting: dict[str, Job] = {}
    for _ in range(40):
        job = await add(
            resources,
            dice.choice(projects[: dice.randint(1, 6)]),
            age=timedelta(milliseconds=dice.randrange(900_000)),
            base_model_id=dice.choice(["base-a", "base-b"]),
            quantization=dice.choice([None, "nf4"]),
            priority=dice.choice([0, 0, 0, 1]),
        )
        waiting[job.id] = job
    running: list[Job] = []
    overtaken: Counter[str] = Counter()
    while waiting or running:
        if len(running) == 3 or not waiting:
            await succeed(resources, running.pop(dice.randrange(len(running))))
            continue
        loaded = dice.choice([None, LoadedBase("base-a", None), LoadedBase("base-b", "nf4")])
        job = await claim(resources, loaded=loaded)
        assert job is not None
        expected = min(waiting.values(), key=lambda job, loaded=loaded: place(job, running, loaded))
        assert job.id == expected.id
        for passed in waiting.values():
            if place(passed, running, None) < place(job, running, None):
                overtaken[passed.id] += 1
                assert job.created_at - passed.created_at <= HEAD_START + timedelta(seconds=1)
        del waiting[job.id]
        running.append(job)
    assert overtaken  # the head start was put to use


def place(job: Job, running: list[Job], loaded: LoadedBase | None) -> tuple[int, int, int, datetime, str]:
    in_hand = sum(other.project_id == job.project_id for other in running)
    has_start = loaded is not None and (job.base_model_id, job.quantization) == (loaded.model_id, loaded.quantization)
    created = job.created_at - (HEAD_START if has_start else timedelta())
    return -job.priority, in_hand, int(created.timestamp()), job.created_at, job.id


async def preempt(resources: Resources, held: list[Lease], **options: Any) -> str | None:
    chosen: dict[str, Any] = {"pool": "default"} | options
    async with resources.write() as session:
        lease = await leases.preempt(session, held, **chosen)
    return lease.job_id if lease else None


async def start(resources: Resources, project: Principal, **columns: Any) -> Lease:
    job = await add(resources, project, priority=columns.pop("priority", 0), pool="default", **columns)
    claimed = await claim(resources)
    assert claimed is not None
    assert claimed.id == job.id
    return Lease(claimed.project_id, claimed.id, "worker-a/0", claimed.fence)


async def test_only_a_preemptible_job_of_lower_priority_makes_room(
    resources: Resources, projects: list[Principal]
) -> None:
    fixed = await start(resources, projects[0])
    movable = await start(resources, projects[1], is_preemptible=True)
    higher = await start(resources, projects[2], is_preemptible=True, priority=8)
    held = [fixed, movable, higher]
    assert await preempt(resources, held) is None
    await add(resources, projects[3])
    assert await preempt(resources, held) is None
    await add(resources, projects[3], priority=7)
    assert await preempt(resources, [fixed, higher]) is None
    assert await preempt(resources, held, pool="gpu-a") is None
    assert await preempt(resources, held, excluded_bases={factories.BASE_MODEL}) is None
    assert (
        await preempt(resources, [Lease(movable.project_id, movable.job_id, movable.owner, movable.fence + 1)]) is None
    )
    assert await preempt(resources, held) == movable.job_id


async def test_a_waiting_job_is_given_room_once(resources: Resources, projects: list[Principal]) -> None:
    held = [await start(resources, project, is_preemptible=True) for project in projects[:3]]
    waiting = await add(resources, projects[3], priority=1)
    victim = await preempt(resources, held)
    assert victim == held[-1].job_id  # the one that has run the shortest
    assert await preempt(resources, held[:-1]) is None
    await add(resources, projects[3], priority=1, age=-timedelta(seconds=1))
    assert await preempt(resources, held[:-1]) == held[1].job_id
    claimed = await claim(resources)
    assert claimed is not None
    assert claimed.id == waiting.id
    assert claimed.preempts_job_id is None


async def test_room_is_made_only_for_what_has_waited(resources: Resources, projects: list[Principal]) -> None:
    held = [await start(resources, projects[0], is_preemptible=True)]
    await factories.job(resources, projects[1], priority=1, queued_at=utc_now())
    await add(resources, projects[1], priority=1, not_before_at=utc_now() - PREEMPTION_PATIENCE / 2)
    assert await preempt(resources, held) is None
    await add(resources, projects[1], priority=1)
    assert await preempt(resources, held) == held[0].job_id


async def set_limits(resources: Resources, project: Principal, **values: int) -> None:
    async with resources.write() as session:
        await quotas.change(session, project.project_id, values)


async def test_a_project_at_its_running_limit_waits_and_others_go_on(resources: Resources) -> None:
    one, _ = await factories.project(resources)
    other, _ = await factories.project(resources)
    first = await add(resources, one, age=timedelta(hours=2))
    second = await add(resources, one, age=timedelta(hours=1))
    of_other = await add(resources, other)
    await set_limits(resources, one, running_jobs=1)
    assert await claimed_ids(resources) == [first.id, of_other.id]
    await succeed(resources, await loaded_job(resources, first.id))
    assert await claimed_ids(resources) == [second.id]


async def test_the_default_holds_where_a_project_has_nothing_of_its_own(resources: Resources) -> None:
    one, _ = await factories.project(resources)
    other, _ = await factories.project(resources)
    for project in (one, one, one, other, other):
        await add(resources, project)
    await set_limits(resources, one, running_jobs=2)
    claimed = await claimed_ids(resources, caps=Caps(running_jobs=1))
    assert len(claimed) == 3


async def test_of_claims_at_once_no_more_run_than_may(resources: Resources) -> None:
    project, _ = await factories.project(resources)
    for _ in range(6):
        await add(resources, project)
    await set_limits(resources, project, running_jobs=2)
    claimed = await asyncio.gather(*(claim(resources, owner=f"worker-{n}/0") for n in range(6)))
    assert sum(job is not None for job in claimed) == 2


async def test_gpu_seconds_used_up_hold_jobs_until_the_next_month_or_a_higher_limit(resources: Resources) -> None:
    project, _ = await factories.project(resources)
    await factories.used(resources, project, metering.month_of(utc_now()), Measure.GPU_MILLISECONDS, 60_000)
    waiting = await add(resources, project)
    await set_limits(resources, project, gpu_seconds_per_month=60)
    assert await claimed_ids(resources) == []
    async with resources.read() as session:
        settings = resources.settings
        why = await quotas.reason_to_wait(session, waiting, settings)
    assert why is not None
    assert "'gpu_seconds_per_month' is 60, and 60 are used" in why
    await set_limits(resources, project, gpu_seconds_per_month=61)
    assert await claimed_ids(resources) == [waiting.id]


async def test_what_runs_counts_for_the_month_before_its_lease_ends(resources: Resources) -> None:
    project, _ = await factories.project(resources)
    now = utc_now()
    long_ago = metering.month_of(now) - timedelta(days=10)
    running = {"status": JobStatus.RUNNING, "claimed_from": JobStatus.QUEUED, "lease_owner": "worker-b/0"}
    meter = {"meter_started_at": long_ago, "meter_seen_at": metering.month_of(now) + timedelta(seconds=50)}
    await factories.job(resources, project, **running, **meter, meter_gpus=2)
    await factories.job(resources, project, **running, **meter, meter_gpus=0)
    waiting = await add(resources, project)
    await set_limits(resources, project, gpu_seconds_per_month=100)
    assert await claimed_ids(resources) == []
    async with resources.read() as session:
        assert await quotas.used(session, project.project_id, quotas.Limit.GPU_SECONDS_PER_MONTH) == 100
    await set_limits(resources, project, gpu_seconds_per_month=101)
    assert await claimed_ids(resources) == [waiting.id]


async def test_a_job_of_a_project_at_its_limit_is_made_no_room_for(resources: Resources) -> None:
    victim_of, _ = await factories.project(resources)
    urgent_of, _ = await factories.project(resources)
    await add(resources, victim_of, is_preemptible=True)
    victim = await claim(resources)
    assert victim is not None
    await add(resources, urgent_of, priority=5)
    await set_limits(resources, urgent_of, running_jobs=0)
    lease = Lease(victim.project_id, victim.id, "worker-a/0", victim.fence)
    async with resources.write() as session:
        assert await leases.preempt(session, [lease], pool=victim.pool) is None
    await set_limits(resources, urgent_of, running_jobs=1)
    async with resources.write() as session:
        assert await leases.preempt(session, [lease], pool=victim.pool) == lease


async def loaded_job(resources: Resources, job_id: str) -> Job:
    async with resources.read() as session:
        return await session.get_one(Job, job_id)


@pytest.mark.parametrize("model", [Project, Organization])
@pytest.mark.parametrize("status", [JobStatus.VALIDATING_FILES, JobStatus.QUEUED])
async def test_jobs_of_a_disabled_project_wait(
    resources: Resources, projects: list[Principal], model: type[Project | Organization], status: JobStatus
) -> None:
    job = await add(resources, projects[0], status=status)
    other = await add(resources, projects[1], status=status)

    async def disable(at: datetime | None) -> None:
        row_id = projects[0].project_id if model is Project else projects[0].organization_id
        async with resources.write() as session:
            await session.execute(update(model).where(model.id == row_id).values(disabled_at=at))

    await disable(utc_now())
    assert await claimed_ids(resources, status=status) == [other.id]
    await disable(None)
    assert await claimed_ids(resources, status=status) == [job.id]


async def test_an_urgent_job_of_a_disabled_project_is_made_no_room_for(resources: Resources) -> None:
    victim_of, _ = await factories.project(resources)
    urgent_of, _ = await factories.project(resources)
    victim = await start(resources, victim_of, is_preemptible=True)
    await add(resources, urgent_of, priority=5)
    async with resources.write() as session:
        await session.execute(update(Project).where(Project.id == urgent_of.project_id).values(disabled_at=utc_now()))
    assert await preempt(resources, [victim]) is None
    async with resources.write() as session:
        await session.execute(update(Project).where(Project.id == urgent_of.project_id).values(disabled_at=None))
    assert await preempt(resources, [victim]) == victim.job_id
