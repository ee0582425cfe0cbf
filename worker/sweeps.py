"""What any worker does beside its jobs: find those whose worker is gone, and give them back."""

import asyncio
import logging
import time

from sqlalchemy.exc import SQLAlchemyError

from app.db import queries
from app.db.queries import database_now
from app.errors import Unavailable
from app.resources import Resources
from app.services import endings, leases, retries, workers
from worker.presence import Presence

_log = logging.getLogger(__name__)
_SWEEP_SECONDS = 1.0
_TIDY_SECONDS = 600.0
_SILENT_SECONDS = 1.0  # more than any session may last


async def run(resources: Resources, presence: Presence) -> None:
    ttl = resources.settings.lease_seconds
    answered_at = time.monotonic()
    patient_until = 0.0
    tidied_at = 0.0
    while True:
        try:
            await recover_from_dead(resources, presence)
            # After an outage the holders have been as cut off as this sweeper: let them renew first.
            if time.monotonic() - answered_at > ttl / 3 + _SWEEP_SECONDS:
                patient_until = time.monotonic() + ttl
            answered_at = time.monotonic()
            if answered_at >= patient_until:
                await end_silent_transactions(resources)
                await expire_silent(resources)
            if answered_at - tidied_at > _TIDY_SECONDS:
                tidied_at = answered_at
                async with resources.write() as session:
                    await workers.remove_long_dead(session)
                await forget_requests(resources)
        except (Unavailable, SQLAlchemyError, OSError):
            _log.warning("the database does not answer; sweeping goes on when it does", exc_info=True)
        await asyncio.sleep(_SWEEP_SECONDS)


async def recover_from_dead(resources: Resources, presence: Presence) -> None:
    """Take back at once the jobs of workers that are known to have died on this machine."""
    async with resources.read() as session:
        owners = await leases.owners(session)
    for worker_id in presence.known_dead(owners):
        async with resources.write() as session:
            for job in await leases.held_by(session, worker_id):
                await _crashed(resources, session, job, "The worker process died")
        presence.forget(worker_id)


async def end_silent_transactions(resources: Resources) -> None:
    """So that a worker which sleeps in one does not keep its job from those that would take it over."""
    longest = resources.settings.database_timeout_seconds + _SILENT_SECONDS
    async with resources.read() as session:
        if ended := await queries.end_silent_transactions(session, older_than_seconds=longest):
            _log.warning("%d transactions were ended: their processes said nothing any more", ended)


async def expire_silent(resources: Resources) -> None:
    """Take back the jobs of holders that have not renewed their lease in time, wherever they are."""
    async with resources.read() as session:
        if not await leases.expired(session):
            return
    async with resources.write() as session:
        for job in await leases.expired(session):
            await _crashed(resources, session, job, "The worker was silent for longer than its lease")


async def forget_requests(resources: Resources) -> None:
    """Each day's in short transactions, however many they were."""
    has_more = True
    while has_more:
        async with resources.write() as session:
            has_more = await retries.forget_old(session)


async def _crashed(resources: Resources, session, job, reason: str) -> None:
    _log.warning("job %s: %s", job.id, reason)
    now = await database_now(session)
    leases.crashed(session, job, reason=reason, max_crashes=resources.settings.max_crashes, now=now)
    await endings.after(session, job)
