"""One slot: a place where one job at a time is trained, and the resident trainer that does it."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any, Literal

from sqlalchemy.exc import SQLAlchemyError

from app.db.models import Job, JobStatus
from app.errors import Unavailable
from app.resources import Resources
from app.services import leases, quotas
from app.services.leases import Lease
from app.services.scheduling import LoadedBase
from worker import workspace
from worker.bases import Bases
from worker.contract.spec import TrainSpec
from worker.keeper import Keeper
from worker.runner import Runner
from worker.supervisor import START_SECONDS, Trainer
from worker.tracking import Trackings

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_DOUBTS_TOO_MANY = 2


class Slot:
    """`device` is the CUDA device this slot is pinned to, or None for the CPU (or all that is visible)."""

    def __init__(
        self,
        resources: Resources,
        *,
        name: str,
        device: str | None,
        threads: int,
        keeper: Keeper,
        bases: Bases,
        trackings: Trackings,
        draining: asyncio.Event,
    ) -> None:
        self._resources = resources
        self._name = name
        self._device = device
        self._threads = threads
        self._keeper = keeper
        self._bases = bases
        self._trackings = trackings
        self._draining = draining
        self.has_started = False
        self._trainer: Trainer | None = None
        self._is_busy = False
        self._doubts: set[str] = set()  # what failed here before its first step, since a run last got to one
        self._avoided: dict[str, float] = {}  # jobs that others should try first, until when

    @property
    def state(self) -> Literal["idle", "busy", "unhealthy"]:
        if len(self._doubts) >= _DOUBTS_TOO_MANY:
            return "unhealthy"
        return "busy" if self._is_busy else "idle"

    def describe(self) -> dict[str, Any]:
        """The slot as the table of workers shows it."""
        loaded = self._loaded
        return {
            "number": int(self._name.rpartition("/")[2]),
            "device": self._device or "cpu",
            "state": self.state,
            "base_model": loaded.model_id if loaded else None,
            "quantization": loaded.quantization if loaded else None,
        }

    async def run(self) -> None:
        """Claim, work, and wait for more, until the worker drains or the slot turns out to be unhealthy."""
        waiter = self._resources.queue.waiter(self._resources.settings.pool)
        idle_since = time.monotonic()
        try:
            while not self._draining.is_set() and self.state != "unhealthy":
                await self._have_trainer()
                self.has_started = True
                if self._draining.is_set():
                    break
                claimed = await self._claim()
                if claimed is not None:
                    self._is_busy = True
                    try:
                        await self._work(*claimed)
                    finally:
                        self._is_busy = False
                    idle_since = time.monotonic()
                    continue
                is_idle = time.monotonic() - idle_since > self._resources.settings.trainer_idle_seconds
                if is_idle and self._trainer is not None and self._trainer.holds is not None:
                    await self.end_trainer()
                await waiter.wait(_LOOK_SECONDS)
        finally:
            waiter.close()
            await self.end_trainer()

    async def trainer_for(self, spec: TrainSpec) -> Trainer:
        """The resident trainer, if it is alive and holds the base of `spec` or none; else a fresh one."""
        trainer = self._trainer
        if trainer is None or not trainer.can_take(spec):
            await self.end_trainer()
            trainer = await self._start_trainer()
        trainer.holds = spec
        return trainer

    async def end_trainer(self) -> str:
        """Kill the trainer, if there is one, and say how it ended. Its base is loaded anew for the next job."""
        trainer, self._trainer = self._trainer, None
        return await trainer.close() if trainer is not None else "not started"

    def doubt(self, failure: str, *, job_id: str) -> None:
        """Something failed before its first step. Two different failures in a row take the slot out.

        `failure` names what failed: a job, or a single run where the job cannot be the cause.
        """
        self._doubts.add(failure)
        self._avoided[job_id] = time.monotonic() + self._resources.settings.lease_seconds
        if self.state == "unhealthy":
            _log.error("slot %s takes no more jobs: on it failed %s", self._name, ", ".join(sorted(self._doubts)))

    def trust(self) -> None:
        """A run got to a step here: whatever failed before, it was not the slot."""
        self._doubts.clear()

    @property
    def _loaded(self) -> LoadedBase | None:
        trainer = self._trainer
        if trainer is None or trainer.holds is None or not trainer.is_alive:
            return None
        return LoadedBase(trainer.holds.base.id, trainer.holds.quantization)

    async def _start_trainer(self) -> Trainer:
        worker_id, _, number = self._name.partition("/")
        log = workspace.of_worker(self._resources.settings, worker_id) / f"trainer-{number}.log"
        log.unlink(missing_ok=True)
        self._trainer = await Trainer.start(
            log=log,
            threads=self._threads,
            device=self._device,
            memory_bytes=self._resources.settings.trainer_memory_bytes,
        )
        return self._trainer

    async def _have_trainer(self) -> None:
        """Start a trainer where there is none, and let it do its imports, seconds of them, before a job is claimed:
        until then a job is better left to others. One that dies of them is found out by the next job."""
        if self._trainer is not None:
            return
        with suppress(OSError):
            trainer = await self._start_trainer()
            waiting = [asyncio.create_task(trainer.until_ready()), asyncio.create_task(self._draining.wait())]
            await asyncio.wait(waiting, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()

    async def _claim(self) -> tuple[Lease, Job] | None:
        now = time.monotonic()
        self._avoided = {job_id: until for job_id, until in self._avoided.items() if until > now}
        try:
            async with self._resources.write() as session:
                return await leases.claim(
                    session,
                    owner=self._name,
                    status=JobStatus.QUEUED,
                    ttl_seconds=self._resources.settings.lease_seconds,
                    pool=self._resources.settings.pool,
                    loaded=self._loaded,
                    excluded_bases=self._bases.excluded(),
                    excluded_jobs=self._avoided,
                    gpus=0 if self._device is None else 1,
                    caps=quotas.caps(self._resources.settings),
                )
        except (Unavailable, SQLAlchemyError, OSError):
            _log.warning("the database does not answer; work is looked for again in a second", exc_info=True)
            return None

    async def _work(self, lease: Lease, job: Job) -> None:
        _log.info("job %s: claimed by %s (fence %d)", job.id, lease.owner, lease.fence)
        with self._keeper.keep(lease, is_preemptible=job.is_preemptible) as hold:
            runner = Runner(
                self._resources,
                hold,
                slot=self,
                bases=self._bases,
                trackings=self._trackings,
                draining=self._draining,
                work_directory=workspace.of_lease(self._resources.settings, lease),
            )
            await runner.run(job)
