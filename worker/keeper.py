"""Keeps the leases of all slots of one worker: heartbeats, and word of those that were taken away."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from app.errors import Unavailable
from app.resources import Resources
from app.services import leases, workers
from app.services.leases import Lease
from app.services.workers import Description

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Hold:
    """A lease that is kept. `revoked` is set when it is lost (cancelled, taken), `preempted` when the job is to
    make room for another, `paused` when its owner has paused it."""

    lease: Lease
    is_preemptible: bool = False
    revoked: asyncio.Event = field(default_factory=asyncio.Event)
    preempted: asyncio.Event = field(default_factory=asyncio.Event)
    paused: asyncio.Event = field(default_factory=asyncio.Event)


class Keeper:
    """`keep` a lease for the length of a block."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._held: dict[Lease, Hold] = {}

    @contextmanager
    def keep(self, lease: Lease, *, is_preemptible: bool = False) -> Iterator[Hold]:
        hold = self._held[lease] = Hold(lease, is_preemptible)
        try:
            yield hold
        finally:
            del self._held[lease]

    def preemptible(self) -> list[Hold]:
        """What could make room for another job, and has not been told to."""
        return [hold for hold in self._held.values() if hold.is_preemptible and not hold.preempted.is_set()]

    async def run(self, describe: Callable[[], Description], draining: asyncio.Event) -> None:
        """Look each second; renew, and report what `describe` tells, each third of a lease and at changes.

        A request to drain, which is left in the worker's row, sets `draining`. A database that is away is tried
        again: until it answers, the fence on every write is what keeps a lost job from being touched.
        """
        ttl = self._resources.settings.lease_seconds
        renewed_at, told = 0.0, None
        while True:
            description = describe()
            try:
                if description != told or time.monotonic() - renewed_at >= ttl / 3:
                    async with self._resources.write() as session:
                        await leases.renew(session, list(self._held), ttl_seconds=ttl)
                        asked_to_drain = await workers.report(session, description)
                    renewed_at, told = time.monotonic(), description
                else:
                    async with self._resources.read() as session:
                        asked_to_drain = await workers.is_asked_to_drain(session, description.id)
                await self._look_at_held()
            except (Unavailable, SQLAlchemyError, OSError):
                _log.warning("the database does not answer; leases are renewed when it does", exc_info=True)
            else:
                if asked_to_drain and not draining.is_set():
                    _log.info("worker %s was asked to drain", description.id)
                    draining.set()
            await asyncio.sleep(min(_LOOK_SECONDS, ttl / 3))

    async def _look_at_held(self) -> None:
        held = list(self._held.values())
        if not held:
            return
        async with self._resources.read() as session:
            statuses = await leases.still_held(session, [hold.lease for hold in held])
        for hold in held:
            status = statuses.get(hold.lease.job_id)
            if status is None:
                hold.revoked.set()
            elif leases.is_given_up(status):
                hold.paused.set()
