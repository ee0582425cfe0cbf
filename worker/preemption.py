"""Making room for jobs of higher priority, where all slots are taken by jobs that may be interrupted."""

import asyncio
import logging
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from app.errors import Unavailable
from app.resources import Resources
from app.services import leases, quotas
from worker.bases import Bases
from worker.keeper import Keeper
from worker.slot import Slot

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0


async def run(resources: Resources, *, slots: Sequence[Slot], keeper: Keeper, bases: Bases) -> None:
    """Look each second, as long as no slot is free and a run on one of them is preemptible."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if any(slot.state == "idle" for slot in slots):
            continue
        try:
            await _make_room(resources, keeper, bases)
        except (Unavailable, SQLAlchemyError, OSError):
            _log.warning("the database does not answer; preemption waits until it does", exc_info=True)


async def _make_room(resources: Resources, keeper: Keeper, bases: Bases) -> None:
    holds = {hold.lease: hold for hold in keeper.preemptible()}
    if not holds:
        return
    settings = resources.settings
    async with resources.write() as session:
        lease = await leases.preempt(
            session,
            list(holds),
            pool=settings.pool,
            excluded_bases=bases.excluded(),
            caps=quotas.caps(settings),
        )
    if lease is not None:
        _log.info("job %s: makes room for a job of higher priority", lease.job_id)
        holds[lease].preempted.set()
