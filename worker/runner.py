"""One job on a slot: stage its files, have it trained, and bring it to its next state."""

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Job, JobStatus
from app.errors import Unavailable
from app.resources import Resources
from app.services import base_models, job_states, leases, waiting
from app.services.leases import LeaseLost
from app.storage.base import ObjectCorrupt, ObjectMissing, StorageUnavailable
from worker import checkpoints, guarded, publish
from worker.bases import Bases, BaseUnavailable
from worker.contract.errors import Blame, TrainError
from worker.contract.events import (
    Adjusted,
    Checkpoint,
    Evaluation,
    Failed,
    Finished,
    Ready,
    Start,
    Started,
    Step,
    Stop,
    Stopped,
)
from worker.contract.spec import TrainSpec
from worker.keeper import Hold
from worker.log_tail import LogTail
from worker.relay import Relay
from worker.supervisor import START_SECONDS, Trainer
from worker.tracking import RunTracking, Trackings

_log = logging.getLogger(__name__)
_TRANSIENT_RETRY = timedelta(seconds=30)
_NO_STORAGE = "The storage for files is not available; the job will be tried again in half a minute"
_INTERRUPTED = "Fine-tuning job interrupted because its worker is stopping; it will be resumed"
_PREEMPTED = "Fine-tuning job preempted by a job of higher priority; it will be resumed"
_Raised = TypeVar("_Raised", bound=Exception)


class HoldsTrainer(Protocol):
    """What a runner needs of its slot."""

    async def trainer_for(self, spec: TrainSpec) -> Trainer: ...

    async def end_trainer(self) -> str: ...

    def doubt(self, failure: str, *, job_id: str) -> None: ...

    def trust(self) -> None: ...


@dataclass(frozen=True)
class Crash:
    """The run ended in a way that nobody planned; it is tried again from its last checkpoint."""

    reason: str


Outcome = Finished | Stopped | Failed | Crash
End = Outcome | TrainError | BaseUnavailable


class Runner:
    """Works while `hold` keeps the job's lease; `draining` is set when the worker is told to stop."""

    def __init__(
        self,
        resources: Resources,
        hold: Hold,
        *,
        slot: HoldsTrainer,
        bases: Bases,
        trackings: Trackings,
        draining: asyncio.Event,
        work_directory: Path,
    ) -> None:
        self._resources = resources
        self._settings = resources.settings
        self._lease = hold.lease
        self._slot = slot
        self._bases = bases
        self._trackings = trackings
        self._revoked = hold.revoked
        self._preempted = hold.preempted
        self._paused = hold.paused
        self._draining = draining
        self._directory = work_directory
        self._trainer_is_free = True
        self._claimed_at = time.monotonic()
        self._has_begun = False  # the trainer was asked; what fails before that is neither slot nor job
        self._trainer_was_ready = True
        self._took_a_step = False

    async def run(self, job: Job) -> None:
        """Never raises for what may happen to one job: the slot goes on with the next."""
        try:
            await self._run(job)
        except* LeaseLost:
            _log.info("job %s: no longer ours", job.id)
        except* TrainError as errors:
            await self._settle(_first(errors))
        except* BaseUnavailable as errors:
            await self._settle(_first(errors))
        except* Unavailable:
            message = "The database did not answer; the job will be tried again"
            await self._settle(TrainError("unavailable", message, blame=Blame.TRANSIENT))
        except* StorageUnavailable:
            _log.warning("job %s: storage is not available", job.id, exc_info=True)
            await self._settle(TrainError("storage_unavailable", _NO_STORAGE, blame=Blame.TRANSIENT))
        except* (SQLAlchemyError, OSError, ValueError):
            _log.exception("job %s: the run failed on this worker's side", job.id)
            await self._settle(Crash("The worker failed outside of training"))
        finally:
            if not self._trainer_is_free:
                await self._slot.end_trainer()
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _run(self, job: Job) -> None:
        self._directory.mkdir(mode=0o700)
        spec = TrainSpec.model_validate(job.spec)
        async with AsyncExitStack() as kept:  # the base model stays on this machine for as long as the run needs it
            start = await self._unless_told_to_stop(self._stage(job, spec, kept))
            if start is None:
                await self._settle(Stopped(run="", step=0))
            else:
                with self._trackings.of_run(self._lease, job) as tracking:
                    await self._train(job, spec, start, tracking)

    async def _train(self, job: Job, spec: TrainSpec, start: Start, tracking: RunTracking) -> None:
        trainer = await self._slot.trainer_for(spec)
        log = LogTail(
            self._resources, self._lease, trainer.log, self._directory / "log-segment", self._settings.max_log_bytes
        )
        os.truncate(trainer.log, 0)  # the trainer appends; what earlier jobs wrote is not this one's
        relay = Relay(self._resources, self._lease, log, when_written=tracking.tell)
        relaying = asyncio.create_task(relay.run())
        relaying.add_done_callback(lambda _: self._revoked.set())  # it ends only when cancelled, or the lease lost
        drain, stop = self._settings.drain_seconds, self._settings.stop_grace_seconds
        signals = ((self._revoked, False, stop), (self._draining, True, drain), (self._preempted, True, drain))
        stopping = [
            asyncio.create_task(self._stop_when(signal, trainer, start.run, checkpoint=checkpoint, grace_seconds=grace))
            for signal, checkpoint, grace in (*signals, (self._paused, True, None))
        ]
        try:
            self._trainer_is_free = False
            self._has_begun = True
            trainer.send(start)
            outcome = await self._follow(trainer, start.run, relay)
        finally:
            lost = self._revoked.is_set()
            self._trainer_was_ready = trainer.is_ready
            await _cancelled(*stopping, relaying)
        if lost:
            raise LeaseLost(job.id)
        if isinstance(outcome, Crash) and (self._draining.is_set() or self._preempted.is_set()):
            outcome = Stopped(run=start.run, step=0)  # killed for taking too long: it resumes from what it has saved
        elif isinstance(outcome, Crash):
            outcome = Crash(f"{outcome.reason} ({await self._slot.end_trainer()})")
        await relay.drain()
        await self._settle(outcome)

    async def _unless_told_to_stop(self, work: Coroutine[Any, Any, Start]) -> Start | None:
        """What comes of the work, which may be a long download; None if the worker is told to stop before."""
        tasks = [
            asyncio.ensure_future(work),
            *(
                asyncio.ensure_future(told.wait())
                for told in (self._revoked, self._draining, self._preempted, self._paused)
            ),
        ]
        working = tasks[0]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            is_done = working.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._revoked.is_set():
            raise LeaseLost(self._lease.job_id)
        return working.result() if is_done else None

    async def _stage(self, job: Job, spec: TrainSpec, kept: AsyncExitStack) -> Start:
        """Everything the trainer needs, as files of this machine."""
        assert job.dataset is not None
        async with self._resources.read() as session:
            base = await base_models.get_one(session, spec.base.id)
        base_directory = await kept.enter_async_context(self._bases.use(base))
        staged: dict[str, str] = {}
        for part in ("training", "validation"):
            if facts := job.dataset.get(part):
                path = self._directory / f"{part}.tokens"
                tokens: dict[str, Any] = facts["tokens"]
                try:
                    await self._resources.storage.get_file(tokens["key"], path, sha256=tokens["sha256"])
                except (ObjectMissing, ObjectCorrupt) as error:
                    message = f"The job failed because its encoded {part} data is damaged in storage. Create it again."
                    raise TrainError("checksum_mismatch", message, param=f"{part}_file") from error
                staged[part] = str(path)
        resume = await checkpoints.restore(self._resources, job.id, self._directory)
        initial = await checkpoints.initial_adapter(self._resources, job, self._directory)
        return Start(
            run=f"{job.id}.{self._lease.fence}",
            spec=spec,
            base_directory=str(base_directory),
            training_data=staged["training"],
            validation_data=staged.get("validation"),
            work_directory=str(self._directory),
            resume_directory=str(resume) if resume else None,
            initial_adapter_directory=str(initial) if initial else None,
            card=_card(job),
        )

    async def _follow(self, trainer: Trainer, run: str, relay: Relay) -> Outcome:
        """Take events until the run has ended; the trainer's own ticks are what proves that it moves."""
        while True:
            seconds = self._settings.progress_timeout_seconds
            if not trainer.is_ready:
                seconds = max(seconds, START_SECONDS)
            try:
                async with asyncio.timeout(seconds):
                    event = await trainer.next_event()
            except TimeoutError:
                return Crash(f"Training made no progress for {seconds:g} seconds")
            if event is None:
                return Crash("The training process ended unexpectedly")
            if isinstance(event, Ready) or event.run != run:
                continue
            if isinstance(event, Finished | Stopped | Failed):
                self._trainer_is_free = not (isinstance(event, Failed) and event.blame == Blame.INTERNAL)
                return event
            if isinstance(event, Started):
                await relay.started(event)
            elif isinstance(event, Adjusted):
                await relay.adjusted(event)
            elif isinstance(event, Evaluation | Step | Checkpoint):
                if isinstance(event, Step):
                    if not self._took_a_step:
                        seconds = time.monotonic() - self._claimed_at
                        _log.info(
                            "job %s: first step after %.3f s, itself %.3f s", self._lease.job_id, seconds, event.seconds
                        )
                    self._took_a_step = True
                    self._slot.trust()
                relay.take(event)

    async def _stop_when(
        self, signal: asyncio.Event, trainer: Trainer, run: str, *, checkpoint: bool, grace_seconds: float | None
    ) -> None:
        """At the signal, ask the trainer to stop, and kill it when it has not within its grace.

        Nothing waits for a paused run, so it has all the time that a step takes: None is no limit but progress.
        """
        await signal.wait()
        trainer.send(Stop(run=run, checkpoint=checkpoint))
        if grace_seconds is not None:
            await asyncio.sleep(grace_seconds)
            trainer.kill()

    async def _settle(self, outcome: End) -> None:
        """Bring the job to the state that follows from how its run ended."""
        if isinstance(outcome, Failed):
            outcome = TrainError(outcome.code, outcome.message, param=outcome.param, blame=outcome.blame)
        if isinstance(outcome, TrainError) and outcome.blame == Blame.INTERNAL:
            outcome = Crash(outcome.message)
        with suppress(LeaseLost):
            if isinstance(outcome, Finished):
                directory = Path(outcome.directory)
                await publish.succeed(self._resources, self._lease, adapter_directory=directory, last_step=outcome.step)
            elif isinstance(outcome, Crash) and self._has_begun and not self._took_a_step:
                await self._settle_early(outcome)
            else:
                await guarded.write(self._resources, self._lease, partial(self._record_end, outcome))

    async def _settle_early(self, crash: Crash) -> None:
        """Before its first step a run may have failed because of its job or because of its slot; nobody knows.

        So a job is excused once, and the failure held against the slot. The next one is held against the job,
        which by then has failed twice. A trainer that was never ready has not even seen the job.
        """
        excused = await guarded.write(self._resources, self._lease, partial(self._record_early_end, crash))
        if excused:
            failure = self._lease.job_id if self._trainer_was_ready else f"a trainer for {self._directory.name}"
            self._slot.doubt(failure, job_id=self._lease.job_id)

    async def _record_early_end(self, crash: Crash, session: AsyncSession, job: Job, now: datetime) -> bool:
        if leases.is_given_up(job.status) or (job.has_been_excused and self._trainer_was_ready):
            await self._record_end(crash, session, job, now)
            return False
        leases.excused(session, job, reason=crash.reason, now=now)
        return True

    async def _record_end(
        self, outcome: Stopped | Crash | TrainError | BaseUnavailable, session: AsyncSession, job: Job, now: datetime
    ) -> None:
        if leases.is_given_up(job.status) and not isinstance(outcome, Crash):
            leases.release(session, job)  # however the run ended: a failure comes again when it is resumed
        elif isinstance(outcome, Stopped):
            message = _PREEMPTED if self._preempted.is_set() and not self._draining.is_set() else _INTERRUPTED
            leases.hand_back(session, job, message=message, now=now)
        elif isinstance(outcome, BaseUnavailable):
            worker_id, _, _ = self._lease.owner.partition("/")
            nobody = await waiting.reason(session, job, silent_seconds=self._settings.lease_seconds, besides=worker_id)
            message = nobody or f"{outcome}; the job waits for another"
            leases.leave_to_others(session, job, message=message, now=now)
        elif isinstance(outcome, Crash):
            leases.crashed(session, job, reason=outcome.reason, max_crashes=self._settings.max_crashes, now=now)
        else:
            _record_train_error(outcome, session, job, now)


def _record_train_error(outcome: TrainError, session: AsyncSession, job: Job, now: datetime) -> None:
    if outcome.blame == Blame.TRANSIENT:
        job.not_before_at = now + _TRANSIENT_RETRY
        leases.hand_back(session, job, message=outcome.message, now=now, level="warn")
    else:
        job.error = {"code": outcome.code, "message": outcome.message, "param": outcome.param}
        job_states.move(session, job, JobStatus.FAILED, message=outcome.message, now=now, level="error")
        leases.release(session, job)


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    """Cancel the tasks and wait for them; raises what ended one before."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


def _first(errors: ExceptionGroup[_Raised]) -> _Raised:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first


def _card(job: Job) -> dict[str, str]:
    """Facts for the model card that only the control side knows."""
    assert job.dataset is not None
    card = {"job": job.id, "training file": job.training_file_id}
    card["training data sha256"] = job.dataset["training"]["file_sha256"]
    if job.initial_adapter is not None:
        card["continued from"] = job.initial_adapter["model"]
        card["continued from, sha256"] = job.initial_adapter["sha256"]
    if job.validation_file_id and job.dataset.get("validation"):
        card["validation file"] = job.validation_file_id
        card["validation data sha256"] = job.dataset["validation"]["file_sha256"]
    return card
