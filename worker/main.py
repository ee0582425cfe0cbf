"""A worker: its slots, its validator and its sweeps, on resources that its caller opened."""

import asyncio
import logging
import os
import shutil
from pathlib import Path

from app.resources import Resources
from worker import sweeps, tidying, validator, workspace
from worker.bases import Bases
from worker.keeper import Keeper
from worker.presence import Presence
from worker.slot import Slot

_log = logging.getLogger(__name__)


async def work(resources: Resources, draining: asyncio.Event) -> None:
    """Take jobs until `draining` is set, then let running ones checkpoint and hand them back."""
    settings = resources.settings
    presence = Presence(settings.data / "workers")
    presence.announce()
    try:
        await asyncio.to_thread(workspace.remove_leftovers, settings, presence)
        await sweeps.recover_from_dead(resources, presence)
        keeper, bases = Keeper(resources), Bases()
        devices = _devices(settings.slots)
        threads = settings.trainer_threads or max(1, (os.cpu_count() or 1) // len(devices))
        slots = [
            Slot(
                resources,
                name=f"{presence.worker_id}/{number}",
                device=device,
                threads=threads,
                keeper=keeper,
                bases=bases,
                draining=draining,
            )
            for number, device in enumerate(devices)
        ]
        _log.info("worker %s takes jobs on %d slot(s)", presence.worker_id, len(slots))
        async with asyncio.TaskGroup() as background:
            beside = [
                background.create_task(keeper.run()),
                background.create_task(sweeps.run(resources, presence)),
                background.create_task(tidying.run(resources)),
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
    finally:
        await asyncio.to_thread(shutil.rmtree, workspace.of_worker(settings, presence.worker_id), ignore_errors=True)
        presence.close()


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
