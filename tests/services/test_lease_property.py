"""Any interleaving of what workers, clients and sweeps do to leases: one owner at most, and no job lost."""

import asyncio
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db import migrations
from app.db.models import TERMINAL, Event, Job, JobStatus
from app.db.queries import database_now
from app.errors import InvalidRequest
from app.resources import open_resources
from app.services import events, job_states, jobs, leases
from app.services.leases import Lease, LeaseLost
from app.settings import Settings
from tests import factories

WORKERS = ["worker-a", "worker-b"]
MAX_CRASHES = 3
ENDINGS = ("done", "The job has been cancelled", "The job was stopped after")
Result = TypeVar("Result")


@cache
def empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        migrations.upgrade(f"sqlite+aiosqlite:///{directory}/hone.db")
        return (Path(directory) / "hone.db").read_bytes()


class Leases(RuleBasedStateMachine):
    """`held` is who owns what by the rules; `lost` are leases that their owners still believe in."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        data = Path(self.directory.name)
        (data / "hone.db").write_bytes(empty_database())
        with sqlite3.connect(data / "hone.db") as connection:  # nothing here is about losing power
            connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        self.opening = open_resources(Settings(data_directory=data))
        self.resources = self.runner.run(self.opening.__aenter__())
        self.read: list[Job] | None = None  # what the database has, until the next write
        self.held: dict[str, Lease] = {}
        self.lost: list[Lease] = []
        self.fences: Counter[str] = Counter()
        self.ended: dict[str, JobStatus] = {}

    def teardown(self) -> None:
        self.runner.run(self.opening.__aexit__(None, None, None))
        self.runner.close()
        self.directory.cleanup()

    def write(self, change: Callable[[AsyncSession], Awaitable[Result]]) -> Result:
        async def run() -> Result:
            async with self.resources.write() as session:
                return await change(session)

        self.read = None
        return self.runner.run(run())

    @initialize()
    def begin(self) -> None:
        async def make() -> list[Principal]:
            await factories.base_model(self.resources)
            return [(await factories.project(self.resources))[0] for _ in range(2)]

        self.principals = self.runner.run(make())
        self.create(0, JobStatus.QUEUED, 0, True)
        self.create(1, JobStatus.QUEUED, 1, False)

    @precondition(lambda self: self.num_waiting() < 3)
    @rule(
        project=st.integers(0, 1),
        status=st.sampled_from([JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.QUEUED]),
        priority=st.integers(0, 2),
        is_preemptible=st.booleans(),
    )
    def create(self, project: int, status: JobStatus, priority: int, is_preemptible: bool) -> None:
        columns = {"status": status, "priority": priority, "is_preemptible": is_preemptible}
        self.runner.run(factories.job(self.resources, self.principals[project], **columns))
        self.read = None

    @rule(worker=st.sampled_from(WORKERS), status=st.sampled_from([JobStatus.QUEUED, JobStatus.VALIDATING_FILES]))
    def claim(self, worker: str, status: JobStatus) -> None:
        free = {job.id for job in self.rows() if job.status == status and job.id not in self.held}
        claimed = self.write(
            lambda session: leases.claim(session, owner=f"{worker}/0", status=status, ttl_seconds=60, pool="default")
        )
        assert (claimed is None) == (not free)
        if claimed is not None:
            lease, _ = claimed
            assert lease.job_id in free
            assert lease.fence > self.fences[lease.job_id]
            self.held[lease.job_id] = lease

    @rule(worker=st.sampled_from(WORKERS))
    def heartbeat(self, worker: str) -> None:
        believed = [lease for lease in (*self.held.values(), *self.lost) if lease.owner == f"{worker}/0"]
        self.write(lambda session: leases.renew(session, believed, ttl_seconds=60))
        alive = self.write(lambda session: leases.still_held(session, believed)) if believed else {}
        assert set(alive) == {lease.job_id for lease in believed if self.held.get(lease.job_id) == lease}

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99))
    def fall_silent(self, which: int) -> None:
        """Its lease is over, and nobody has noticed yet: the holder may still renew it."""
        job_id = pick(sorted(self.held), which)

        async def change(session: AsyncSession) -> None:
            past = await database_now(session) - timedelta(seconds=1)
            await session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=past))

        self.write(change)

    @rule()
    def sweep(self) -> None:
        async def change(session: AsyncSession) -> list[str]:
            gone = await leases.expired(session)
            for job in gone:
                await self.crash_of(session, job)
            return [job.id for job in gone]

        self.lose(self.write(change))

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: str) -> None:
        async def change(session: AsyncSession) -> list[str]:
            gone = await leases.held_by(session, worker)
            for job in gone:
                await self.crash_of(session, job)
            return [job.id for job in gone]

        gone = self.write(change)
        assert set(gone) == {job_id for job_id, lease in self.held.items() if lease.owner == f"{worker}/0"}
        self.lose(gone)

    @rule(worker=st.sampled_from(WORKERS))
    def drain(self, worker: str) -> None:
        for lease in [lease for lease in self.held.values() if lease.owner == f"{worker}/0"]:
            self.give_back(lease)

    @precondition(lambda self: self.held)
    @rule(worker=st.sampled_from(WORKERS))
    def preempt(self, worker: str) -> None:
        mine = [lease for lease in self.held.values() if lease.owner == f"{worker}/0"]
        rows = {job.id: job for job in self.rows()}
        running = [job for lease in mine if (job := rows[lease.job_id]).status == JobStatus.RUNNING]
        movable = [job for job in running if job.is_preemptible]
        waiting = [
            job
            for job in rows.values()
            if job.status == JobStatus.QUEUED and job.id not in self.held and job.preempts_job_id is None
        ]

        async def change(session: AsyncSession) -> Lease | None:
            long_ago = await database_now(session) - timedelta(minutes=1)
            await session.execute(update(Job).where(Job.status == JobStatus.QUEUED).values(queued_at=long_ago))
            return await leases.preempt(session, mine, pool="default") if mine else None

        lease = self.write(change)
        can = any(one.priority > other.priority for one in waiting for other in movable)
        assert (lease is not None) == can
        if lease is not None:
            assert lease.job_id in {job.id for job in movable}
            self.give_back(lease)

    @precondition(lambda self: self.held or self.lost)
    @rule(which=st.integers(0, 99), how=st.sampled_from(["apply", "checkpoint", "finish", "fail_early", "crash"]))
    def write_as_holder(self, which: int, how: str) -> None:
        """Whoever believes to hold a lease writes: it counts only if the lease is held."""
        lease = pick([*self.lost, *self.held.values()], -which)

        async def change(session: AsyncSession) -> JobStatus:
            job, now = await leases.hold(session, lease)
            if how == "apply":
                events.add(session, job, "applied", now=now)
            elif leases.is_given_up(job.status) and how in ("finish", "fail_early"):
                leases.release(session, job)  # as a runner does, however its run has ended
            elif how == "checkpoint":
                job.crashes, job.has_been_excused = 0, False
            elif how == "crash":
                await self.crash_of(session, job)
            elif how == "fail_early" and not job.has_been_excused:
                leases.excused(session, job, reason="early", now=now)
            elif how == "finish":
                following = JobStatus.QUEUED if job.status == JobStatus.VALIDATING_FILES else JobStatus.SUCCEEDED
                job_states.move(session, job, following, message="done" if following in TERMINAL else "ok", now=now)
                leases.release(session, job)
            return job.status

        before = {job.id: (job.event_sequence, job.status, job.fence) for job in self.rows()}
        if self.held.get(lease.job_id) != lease:
            with pytest.raises(LeaseLost):
                self.write(change)
            assert before == {job.id: (job.event_sequence, job.status, job.fence) for job in self.rows()}
            return
        self.write(change)
        job = next(job for job in self.rows() if job.id == lease.job_id)
        if job.lease_owner is None:
            self.lose([lease.job_id])

    @precondition(lambda self: len(self.held) > 1)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        rows = self.rows()
        job = pick(rows, which)
        principal = next(one for one in self.principals if one.project_id == job.project_id)

        def cancelling(session: AsyncSession) -> Awaitable[Job]:
            return jobs.cancel(session, principal, job_id=job.id)

        if job.status in TERMINAL - {JobStatus.CANCELLED}:
            with pytest.raises(InvalidRequest):
                self.write(cancelling)
            return
        assert self.write(cancelling).status == JobStatus.CANCELLED
        self.lose([job.id] if job.id in self.held else [])

    @rule(which=st.integers(0, 99))
    def pause(self, which: int) -> None:
        """Whoever holds the lease keeps it until it lets go."""
        self.change_as_owner(which, jobs.pause, allowed=(JobStatus.QUEUED, JobStatus.RUNNING), becomes=JobStatus.PAUSED)

    @rule(which=st.integers(0, 99))
    def resume(self, which: int) -> None:
        self.change_as_owner(which, jobs.resume, allowed=(JobStatus.PAUSED,), becomes=JobStatus.QUEUED)

    @invariant()
    def every_job_has_one_owner_or_can_be_claimed(self) -> None:
        for job in self.rows():
            lease = self.held.get(job.id)
            assert (job.lease_owner, job.fence if lease else None) == (
                (lease.owner, lease.fence) if lease else (None,) * 2
            )
            if lease is None:
                assert job.status != JobStatus.RUNNING
            else:
                assert job.status not in TERMINAL
            assert job.fence >= self.fences[job.id]
            assert job.status == self.ended.get(job.id, job.status)
            assert job.crashes < MAX_CRASHES or job.status == JobStatus.FAILED or job.status == JobStatus.CANCELLED
            self.fences[job.id] = job.fence
            if job.status in TERMINAL:
                self.ended[job.id] = job.status

    @invariant()
    def a_lost_lease_is_good_for_nothing(self) -> None:
        async def hold(session: AsyncSession) -> None:
            for lease in self.lost[-5:]:
                with pytest.raises(LeaseLost):
                    await leases.hold(session, lease)

        if self.lost:
            self.write(hold)

    @invariant()
    def events_are_numbered_without_gaps_and_end_once(self) -> None:
        async def read() -> list[Event]:
            async with self.resources.read() as session:
                return list(await session.scalars(select(Event).order_by(Event.job_id, Event.sequence)))

        told: dict[str, list[Event]] = {}
        for event in self.runner.run(read()):
            told.setdefault(event.job_id, []).append(event)
        for job in self.rows():
            mine = told.get(job.id, [])
            assert [event.sequence for event in mine] == list(range(1, job.event_sequence + 1))
            assert sum(event.message.startswith(ENDINGS) for event in mine) == (job.status in TERMINAL)

    def change_as_owner(
        self, which: int, change: Callable[..., Awaitable[Job]], *, allowed: Sequence[JobStatus], becomes: JobStatus
    ) -> None:
        before = pick(self.rows(), which)
        principal = next(one for one in self.principals if one.project_id == before.project_id)

        def changing(session: AsyncSession) -> Awaitable[Job]:
            return change(session, principal, job_id=before.id)

        if before.status in TERMINAL or before.status == JobStatus.VALIDATING_FILES:
            with pytest.raises(InvalidRequest):
                self.write(changing)
            return
        after = self.write(changing)
        assert after.status == (becomes if before.status in allowed else before.status)
        assert (after.lease_owner, after.fence) == (before.lease_owner, before.fence)

    def num_waiting(self) -> int:
        return sum(job.lease_owner is None and job.status not in TERMINAL for job in self.rows())

    def rows(self) -> list[Job]:
        async def read() -> list[Job]:
            async with self.resources.read() as session:
                return list(await session.scalars(select(Job).order_by(Job.created_at, Job.id)))

        if self.read is None:
            self.read = self.runner.run(read())
        return self.read

    def give_back(self, lease: Lease) -> None:
        async def change(session: AsyncSession) -> None:
            job, now = await leases.hold(session, lease)
            leases.hand_back(session, job, message="given back", now=now)

        self.write(change)
        self.lose([lease.job_id])

    def lose(self, job_ids: list[str]) -> None:
        self.lost += [self.held.pop(job_id) for job_id in job_ids]

    async def crash_of(self, session: AsyncSession, job: Job) -> None:
        leases.crashed(session, job, reason="it died", max_crashes=MAX_CRASHES, now=await database_now(session))


def pick(among: Sequence[Result], which: int) -> Result:
    return among[which % len(among)]


@pytest.mark.parametrize("seed", range(3))
def test_a_long_walk(seed: int) -> None:
    """Hypothesis prefers short stories, which it can explain; some faults need a long one."""
    dice = random.Random(seed)
    machine = Leases()
    machine.begin()
    for _ in range(150):
        worker, which = dice.choice(WORKERS), dice.randrange(100)
        claimed = dice.choice([JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.VALIDATING_FILES])
        steps: dict[str, Callable[[], None]] = {
            "claim": lambda worker=worker, claimed=claimed: machine.claim(worker, claimed),
            "heartbeat": lambda worker=worker: machine.heartbeat(worker),
            "die": lambda worker=worker: machine.die(worker),
            "drain": lambda worker=worker: machine.drain(worker),
            "sweep": machine.sweep,
        }
        if machine.num_waiting() < 3:
            status, priority = dice.choice([JobStatus.QUEUED, JobStatus.VALIDATING_FILES]), dice.randrange(3)
            steps["create"] = lambda status=status, priority=priority, which=which: machine.create(
                which % 2, status, priority, which > 30
            )
        steps["pause"] = lambda which=which: machine.pause(which)
        steps["resume"] = lambda which=which: machine.resume(which)
        if machine.held:
            how = dice.choice(["apply", "checkpoint", "finish", "fail_early", "crash"])
            steps["write"] = lambda which=which, how=how: machine.write_as_holder(which, how)
            steps["preempt"] = lambda worker=worker: machine.preempt(worker)
            steps["fall silent"] = lambda which=which: machine.fall_silent(which)
        if len(machine.held) > 1:
            steps["cancel"] = lambda which=which: machine.cancel(which)
        steps[dice.choices(list(steps), [4 if name in ("claim", "create") else 1 for name in steps])[0]]()
        machine.every_job_has_one_owner_or_can_be_claimed()
        machine.a_lost_lease_is_good_for_nothing()
        machine.events_are_numbered_without_gaps_and_end_once()
    assert len(machine.lost) > 20
    machine.teardown()


TestLeases = Leases.TestCase
TestLeases.settings = settings(
    max_examples=20,
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    database=None,
)
