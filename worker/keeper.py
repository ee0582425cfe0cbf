"""Keeps the leases of all slots of one worker: heartbeats, and word of those that were taken away."""

import asyncio
import logging
import time
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from app.errors import Unavailable
from app.resources import Resources
from app.services import leases
from app.services.leases import Lease

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0


class Keeper:
    """`keep` a lease for the length of a block; its event is set when the lease is lost (cancelled, taken)."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._held: dict[Lease, asyncio.Event] = {}

    @contextmanager
    def keep(self, lease: Lease):
        revoked = asyncio.Event()
        self._held[lease] = revoked
        try:
            yield revoked
        finally:
            del self._held[lease]

    async def run(self) -> None:
        """Look each second, renew each third of a lease. A database that is away is tried again: until it
        answers, the fence on every write is what keeps a lost job from being touched."""
        ttl = self._resources.settings.lease_seconds
        renewed_at = 0.0
        while True:
            held = list(self._held)
            if held:
                try:
                    if time.monotonic() - renewed_at >= ttl / 3:
                        async with self._resources.write() as session:
                            await leases.renew(session, held, ttl_seconds=ttl)
                        renewed_at = time.monotonic()
                    async with self._resources.read() as session:
                        alive = await leases.still_held(session, held)
                except (Unavailable, SQLAlchemyError, OSError):
                    _log.warning("the database does not answer; leases are renewed when it does", exc_info=True)
                else:
                    for lease in held:
                        if lease.job_id not in alive and (revoked := self._held.get(lease)):
                            revoked.set()
            await asyncio.sleep(min(_LOOK_SECONDS, ttl / 3))
