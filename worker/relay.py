"""From a trainer's events to rows, log segments and stored checkpoints, all under the lease's fence.

Steps are written at most every quarter of a second; while the database is away they wait here and the
run goes on. Uploads go on beside, so that neither heartbeat nor steps wait for them.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Job
from app.resources import Resources
from app.services.leases import Lease
from app.storage.base import StorageUnavailable
from worker import checkpoints, guarded, step_records
from worker.contract.events import Adjusted, Checkpoint, Evaluation, Started, Step
from worker.log_tail import LogTail
from worker.pace import Pace
from worker.step_records import StepRecord

_log = logging.getLogger(__name__)
_FLUSH_SECONDS = 0.25
_LOG_SECONDS = 5.0
_MOST_AT_ONCE = 100


class Relay:
    """Takes events as they come; `run` writes them until cancelled, `drain` writes what is left.

    `run` and `drain` raise LeaseLost when the job is no longer this worker's.
    """

    def __init__(
        self, resources: Resources, lease: Lease, log: LogTail, *, when_written: Callable[[], None] = lambda: None
    ) -> None:
        """`when_written` is called after each write of steps."""
        self._resources = resources
        self.lease = lease
        self._log_tail = log
        self._when_written = when_written
        self._evaluations: list[Evaluation] = []
        self._pending: list[StepRecord] = []
        self._checkpoints: asyncio.Queue[Checkpoint] = asyncio.Queue()
        self._writing = asyncio.Lock()
        self._pace = Pace()

    async def started(self, event: Started) -> None:
        """Store how the run is carried out before its first step, so that a resumed run repeats it exactly."""
        await guarded.write(self._resources, self.lease, partial(_record_start, event))

    async def adjusted(self, event: Adjusted) -> None:
        """Store how the run goes on before the step that is tried again, for the same reason."""
        await guarded.write(self._resources, self.lease, partial(_record_adjustment, event))

    def take(self, event: Evaluation | Step | Checkpoint) -> None:
        if isinstance(event, Evaluation):  # the evaluations made after a step come before its own event
            self._evaluations.append(event)
        elif isinstance(event, Step):
            of_step = tuple(one for one in self._evaluations if one.step == event.step)
            self._evaluations.clear()
            self._pace.step(event.seconds)
            self._pending.append(StepRecord(event, of_step))
        else:
            self._checkpoints.put_nowait(event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write_steps())
            tasks.create_task(self._save_checkpoints())
            tasks.create_task(self._store_log())

    async def drain(self) -> None:
        """Write everything that was taken. To be called when `run` has been cancelled."""
        await self._flush()
        while not self._checkpoints.empty():
            await self._save(self._checkpoints.get_nowait())
        await self._flush_log(final=True)

    async def _write_steps(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self._flush()

    async def _save_checkpoints(self) -> None:
        while True:
            event = await self._checkpoints.get()
            # A checkpoint that was begun is finished even when the run ends: `drain` finds only whole ones.
            saving = asyncio.ensure_future(self._save(event))
            try:
                await asyncio.shield(saving)
            except asyncio.CancelledError:
                await saving
                raise

    async def _save(self, event: Checkpoint) -> None:
        await self._flush()  # a resumed run repeats only later steps: these must be on record first
        directory = Path(event.directory)
        try:
            await checkpoints.save(
                self._resources, self.lease, step=event.step, is_last=event.is_last, directory=directory
            )
        except StorageUnavailable:
            if event.is_last:  # without it there is no result
                raise
            _log.warning(
                "a checkpoint of job %s could not be stored; the run goes on", self.lease.job_id, exc_info=True
            )
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _store_log(self) -> None:
        while True:
            await asyncio.sleep(_LOG_SECONDS)
            await self._flush_log()

    async def _flush_log(self, *, final: bool = False) -> None:
        try:
            await self._log_tail.flush(final=final)
        except OSError:  # a full disk must not end a run for the sake of its log
            _log.warning("a log segment of job %s could not be stored", self.lease.job_id, exc_info=True)

    async def _flush(self) -> None:
        async with self._writing:
            while self._pending:
                records = self._pending[:_MOST_AT_ONCE]
                await guarded.write(
                    self._resources, self.lease, partial(_write_records, records, self._pace.seconds_a_step)
                )
                del self._pending[: len(records)]
                self._when_written()


async def _record_start(event: Started, _session: AsyncSession, job: Job, _now: datetime) -> None:
    job.total_steps = event.total_steps
    if job.spec is not None and job.spec.get("execution") is None:
        job.spec = {**job.spec, "execution": event.execution.model_dump()}


async def _record_adjustment(event: Adjusted, _session: AsyncSession, job: Job, _now: datetime) -> None:
    if job.spec is not None:
        job.spec = {**job.spec, "execution": event.execution.model_dump()}


async def _write_records(
    records: Sequence[StepRecord], seconds_a_step: float, session: AsyncSession, job: Job, now: datetime
) -> None:
    await step_records.write(session, job, records, seconds_a_step=seconds_a_step, now=now)
