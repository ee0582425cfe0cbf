"""One slot: a place where one job at a time is trained, and the resident trainer that does it."""

import asyncio
import logging
import time
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from app.db.models import JobStatus
from app.errors import Unavailable
from app.queue.base import TRAINING_POOL
from app.resources import Resources
from app.services import leases
from worker import workspace
from worker.bases import Bases
from worker.contract.spec import TrainSpec
from worker.keeper import Keeper
from worker.runner import Runner
from worker.supervisor import START_SECONDS, Trainer

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0


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
        draining: asyncio.Event,
    ) -> None:
        self._resources = resources
        self._name = name
        self._device = device
        self._threads = threads
        self._keeper = keeper
        self._bases = bases
        self._draining = draining
        self._trainer: Trainer | None = None

    async def run(self) -> None:
        """Claim, work, and wait for more, until the worker drains."""
        waiter = self._resources.queue.waiter(TRAINING_POOL)
        idle_since = time.monotonic()
        try:
            while not self._draining.is_set():
                await self._have_trainer()
                if self._draining.is_set():
                    break
                claimed = await self._claim()
                if claimed is not None:
                    await self._work(*claimed)
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

    async def _start_trainer(self) -> Trainer:
        worker_id, _, number = self._name.partition("/")
        log = workspace.of_worker(self._resources.settings, worker_id) / f"trainer-{number}.log"
        log.unlink(missing_ok=True)
        self._trainer = await Trainer.start(log=log, threads=self._threads, device=self._device)
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

    async def _claim(self):
        try:
            async with self._resources.write() as session:
                return await leases.claim(
                    session,
                    owner=self._name,
                    status=JobStatus.QUEUED,
                    ttl_seconds=self._resources.settings.lease_seconds,
                )
        except (Unavailable, SQLAlchemyError, OSError):
            _log.warning("the database does not answer; work is looked for again in a second", exc_info=True)
            return None

    async def _work(self, lease: leases.Lease, job) -> None:
        _log.info("job %s: claimed by %s (fence %d)", job.id, lease.owner, lease.fence)
        with self._keeper.keep(lease) as revoked:
            runner = Runner(
                self._resources,
                lease,
                slot=self,
                bases=self._bases,
                revoked=revoked,
                draining=self._draining,
                work_directory=workspace.of_lease(self._resources.settings, lease),
            )
            await runner.run(job)
