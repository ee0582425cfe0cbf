"""A worker: its slots, its validator and its sweeps, on resources that its caller opened."""

import asyncio
import logging
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.db.models import WorkerState
from app.errors import Unavailable
from app.resources import Resources
from app.services import workers
from app.services.workers import Description
from worker import deliveries, preemption, sweeps, tidying, validator, workspace
from worker.bases import Bases
from worker.keeper import Keeper
from worker.presence import Presence
from worker.slot import Slot

_log = logging.getLogger(__name__)


async def work(resources: Resources, stopping: asyncio.Event) -> None:
    """Take jobs until `stopping` is set or an operator drains the worker; then let running ones checkpoint and
    hand them back."""
    settings = resources.settings
    presence = Presence(settings.data / "workers")
    presence.announce()
    draining = asyncio.Event()
    keeper, bases = Keeper(resources), Bases(resources)
    slots = [] if settings.cpu_only else _slots(resources, presence.worker_id, keeper, bases, draining)
    describe = _describe(resources, presence.worker_id, slots, bases, draining)
    try:
        await asyncio.to_thread(workspace.remove_leftovers, settings, presence)
        await sweeps.recover_from_dead(resources, presence)
        _log.info("worker %s takes jobs on %d slot(s)", presence.worker_id, len(slots))
        async with asyncio.TaskGroup() as background:
            beside = [
                background.create_task(_pass_on(stopping, draining)),
                background.create_task(keeper.run(describe, draining)),
                background.create_task(sweeps.run(resources, presence)),
                background.create_task(tidying.run(resources)),
                background.create_task(deliveries.run(resources)),
                background.create_task(bases.retry_unavailable()),
                background.create_task(preemption.run(resources, slots=slots, keeper=keeper, bases=bases)),
            ]
            async with asyncio.TaskGroup() as working:
                for slot in slots:
                    working.create_task(slot.run())
                working.create_task(
                    validator.run(
                        resources,
                        owner=f"{presence.worker_id}/validator",
                        keeper=keeper,
                        bases=bases,
                        draining=draining,
                    )
                )
            for task in beside:
                task.cancel()
        await _leave(resources, presence.worker_id)
    finally:
        await asyncio.to_thread(shutil.rmtree, workspace.of_worker(settings, presence.worker_id), ignore_errors=True)
        presence.close()


def _slots(resources: Resources, worker_id: str, keeper: Keeper, bases: Bases, draining: asyncio.Event) -> list[Slot]:
    devices = _devices(resources.settings.slots)
    threads = resources.settings.trainer_threads or max(1, (os.cpu_count() or 1) // len(devices))
    return [
        Slot(
            resources,
            name=f"{worker_id}/{number}",
            device=device,
            threads=threads,
            keeper=keeper,
            bases=bases,
            draining=draining,
        )
        for number, device in enumerate(devices)
    ]


def _describe(
    resources: Resources, worker_id: str, slots: Sequence[Slot], bases: Bases, draining: asyncio.Event
) -> Callable[[], Description]:
    """Makes what the worker says of itself at any moment."""

    def state() -> WorkerState:
        if draining.is_set():
            return WorkerState.DRAINING
        states = {slot.state for slot in slots}
        if states == {"unhealthy"}:
            return WorkerState.UNHEALTHY
        if not all(slot.has_started for slot in slots):
            return WorkerState.STARTING
        return WorkerState.READY

    def describe() -> Description:
        return Description(
            id=worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            version=metadata.version("hone"),
            pool=resources.settings.pool,
            kinds=[*([workers.TRAIN] if slots else []), workers.CPU],
            state=state(),
            slots=[slot.describe() for slot in slots],
            unavailable_bases=bases.unavailable,
        )

    return describe


async def _pass_on(stopping: asyncio.Event, draining: asyncio.Event) -> None:
    await stopping.wait()
    draining.set()


async def _leave(resources: Resources, worker_id: str) -> None:
    with suppress(Unavailable, SQLAlchemyError, OSError):  # else its row stays behind as that of a dead worker
        async with resources.write() as session:
            await workers.leave(session, worker_id)


def _devices(slots: int | None) -> list[str | None]:
    """The CUDA device of each slot; without GPUs, slots share the CPU. None asks for one slot a GPU, else one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = [name for name in visible.split(",") if name.strip()]
    else:
        known = Path("/proc/driver/nvidia/gpus")
        gpus = [str(number) for number in range(len(list(known.iterdir())))] if known.is_dir() else []
    if not gpus:
        return [None] * (1 if slots is None else slots)
    return [*gpus] if slots is None else [gpus[number % len(gpus)] for number in range(slots)]
