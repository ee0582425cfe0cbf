"""Jobs' figures on their way to trackers: from the rows that the relay has written, each tracker at its own pace.

A tracker reads what it has not sent from the database, so nothing is lost with a worker, nothing is kept in memory
for a tracker that is slow, and what a resumed run repeats is sent once. A run never waits for a tracker: what goes
wrong is one warning on the job.
"""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from app.db.models import TERMINAL, Job, JobStatus
from app.errors import Unavailable
from app.observability import redact
from app.resources import Resources
from app.services import integrations, leases
from app.services.leases import Lease, LeaseLost
from worker import step_records, tracker_process
from worker.contract.tracking import Close, Log, Open, Opened
from worker.tracker_access import NotHere, access
from worker.tracker_process import TrackerFailed, TrackerProcess

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
_LEAVE_SECONDS = 10.0
_STEPS_AT_ONCE = 200
_Read = TypeVar("_Read")


class Trackings:
    """All trackers of one worker. `close` is to be called at its end; what has not ended by then is killed."""

    def __init__(self, resources: Resources, directory: Path) -> None:
        self._resources = resources
        self._directory = directory
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def of_run(self, lease: Lease, job: Job) -> Iterator["RunTracking"]:
        """Trackers for one claim of a job. They outlive the block, until they have told how it ended."""
        run = RunTracking()
        for asked in integrations.asked(job):
            told = run.listener()
            directory = self._directory / f"{asked.name}-{job.id}.{lease.fence}"
            tracker = _Tracker(self._resources, lease, asked, told, run.ended, directory)
            task = asyncio.create_task(tracker.run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            yield run
        finally:
            run.ended.set()
            run.tell()

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LEAVE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class RunTracking:
    """One claim of a job, as its trackers hear of it."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._listeners: list[asyncio.Event] = []

    def listener(self) -> asyncio.Event:
        self._listeners.append(asyncio.Event())
        return self._listeners[-1]

    def tell(self) -> None:
        """There are new rows, or the claim is over."""
        for listener in self._listeners:
            listener.set()


class _Tracker:
    def __init__(
        self,
        resources: Resources,
        lease: Lease,
        asked: integrations.Asked,
        told: asyncio.Event,
        ended: asyncio.Event,
        directory: Path,
    ) -> None:
        self._resources = resources
        self._lease = lease
        self._asked = asked
        self._told = told
        self._ended = ended
        self._directory = directory
        self._secrets: list[str] = []

    async def run(self) -> None:
        """Never raises: whatever a tracker does is no business of the job's."""
        try:
            await self._run()
        except NotHere as error:
            await self._fail(str(error))
        except TrackerFailed as error:
            await self._fail(self._without_secrets(str(error)))
        except LeaseLost:
            _log.info("job %s: %s has nothing more to tell", self._lease.job_id, self._asked.name)
        except Exception:
            _log.exception("job %s: %s failed on this worker's side", self._lease.job_id, self._asked.name)
            await self._fail("the worker failed")
        finally:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _run(self) -> None:
        settings = self._resources.settings
        places = access(settings, self._asked.kind)
        self._secrets = [places[name] for name in ("api_key", "tracking_uri") if name in places]
        job = await self._job()
        await asyncio.to_thread(self._directory.mkdir, mode=0o700, parents=True)
        command = Open(
            kind=self._asked.kind,
            run=self._asked.run,
            job_id=job.id,
            project_id=job.project_id,
            base_model=job.base_model_id,
            options=self._asked.options,
            access=places,
            config=integrations.config(job),
            work_directory=str(self._directory),
        )
        patience = settings.tracker_timeout_seconds
        async with tracker_process.started(work_directory=self._directory, patience_seconds=patience) as process:
            opened = await process.ask(command)
            assert isinstance(opened, Opened)
            found = integrations.TrackerRun(run_id=opened.run_id, url=opened.url)
            await self._record(partial(integrations.record_run, name=self._asked.name, found=found))
            await self._send_steps(process, after=opened.last_step)
            await process.ask(await self._close())

    async def _send_steps(self, process: TrackerProcess, *, after: int) -> None:
        """Until the claim is over and all that was written under it is sent."""
        sent = after
        while True:
            is_over = self._ended.is_set()  # looked at before the rows, so that none written before it is missed
            self._told.clear()
            steps = await self._read(
                lambda session, after=sent: step_records.figures_after(
                    session, self._lease.job_id, after, limit=_STEPS_AT_ONCE
                )
            )
            if steps:
                await process.ask(Log(steps=steps))
                sent = steps[-1].step
            elif is_over:
                return
            else:
                await self._told.wait()

    async def _job(self) -> Job:
        """Raises LeaseLost when another worker has taken the job, and its trackers are no longer ours to feed."""
        job = await self._read(partial(leases.seen_by, lease=self._lease))
        if job is None:
            raise LeaseLost(self._lease.job_id)
        return job

    async def _close(self) -> Close:
        job = await self._job()
        status = JobStatus(job.status)
        return Close(
            status=status.value if status in TERMINAL else "interrupted",  # pyright: ignore[reportArgumentType]
            summary={
                "status": status.value,
                "fine_tuned_model": job.fine_tuned_model,
                "trained_tokens": job.trained_tokens,
                "error": job.error["code"] if job.error else None,
            },
        )

    async def _fail(self, reason: str) -> None:
        _log.warning("job %s: %s failed: %s", self._lease.job_id, self._asked.name, reason)
        with suppress(LeaseLost):
            await self._record(partial(integrations.record_failure, name=self._asked.name, reason=reason))

    async def _record(self, change: Callable[..., None]) -> None:
        """Raises LeaseLost when the job has been claimed again, or cancelled."""

        async def write() -> None:
            async with self._resources.write() as session:
                job, now = await leases.hold_last(session, self._lease)
                change(session, job, now)

        await _patiently(write)

    async def _read(self, look: Callable[..., Awaitable[_Read]]) -> _Read:
        async def read() -> _Read:
            async with self._resources.read() as session:
                return await look(session)

        return await _patiently(read)

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return redact(text)


async def _patiently(action: Callable[[], Awaitable[_Read]]) -> _Read:
    """Try again for as long as the database is away."""
    while True:
        try:
            return await action()
        except (Unavailable, SQLAlchemyError, OSError):
            _log.warning("the database does not answer; trackers go on when it does", exc_info=True)
            await asyncio.sleep(_RETRY_SECONDS)
