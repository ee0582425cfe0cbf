"""Sending webhooks, which any worker does beside its jobs: many receivers at a time, each for itself."""

import asyncio
import logging
import time
from contextlib import suppress
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from app.errors import Unavailable
from app.resources import Resources
from app.services import webhook_deliveries, webhook_sending
from app.services.webhook_deliveries import Attempt
from app.services.webhook_sending import Outcome

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_TIDY_SECONDS = 600.0
_MOST_AT_ONCE = 64
# Receivers that have failed may keep only so many places waiting: the others are for first attempts.
_MOST_RETRIES_AT_ONCE = 32
_RECORD_SECONDS = 20.0


class _Post:
    """What is under way: by endpoint, because a receiver gets one delivery at a time from a worker."""

    def __init__(self) -> None:
        self.retries: dict[str, bool] = {}
        self.changed = asyncio.Event()

    def begin(self, attempt: Attempt) -> None:
        self.retries[attempt.endpoint_id] = attempt.number > 1

    def end(self, attempt: Attempt) -> None:
        del self.retries[attempt.endpoint_id]
        self.changed.set()


async def run(resources: Resources) -> None:
    """Look each second, and whenever a place has become free. Cancelled, it forgets what is under way: that is due
    again when its lease ends."""
    post = _Post()
    tidied_at = time.monotonic()
    async with asyncio.TaskGroup() as sending:
        while True:
            post.changed.clear()
            try:
                for attempt in await _take(resources, post):
                    post.begin(attempt)
                    sending.create_task(_attempt(resources, post, attempt))
                if time.monotonic() - tidied_at > _TIDY_SECONDS:
                    tidied_at = time.monotonic()
                    await forget(resources)
            except (Unavailable, SQLAlchemyError, OSError):
                _log.warning("the database does not answer; webhooks go on when it does", exc_info=True)
                await asyncio.sleep(_LOOK_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await post.changed.wait()


async def forget(resources: Resources) -> None:
    async with resources.write() as session:
        age = timedelta(seconds=resources.settings.webhook_log_seconds)
        await webhook_deliveries.forget(session, older_than=age)


async def _take(resources: Resources, post: _Post) -> list[Attempt]:
    room = _MOST_AT_ONCE - len(post.retries)
    if room <= 0:
        return []
    async with resources.read() as session:
        if not await webhook_deliveries.has_work(session, busy_endpoints=post.retries):
            return []
    # After the answer's time limit there must be time to record it.
    lease = resources.settings.webhook_timeout_seconds + _RECORD_SECONDS + _LOOK_SECONDS
    sealer = resources.sealer
    async with resources.write() as session:
        await webhook_deliveries.distribute(session)
        await session.flush()
        taken = await webhook_deliveries.claim(
            session, limit=room, busy_endpoints=post.retries, retries=False, lease_seconds=lease, sealer=sealer
        )
        busy = {*post.retries, *(attempt.endpoint_id for attempt in taken)}
        room = min(room - len(taken), _MOST_RETRIES_AT_ONCE - sum(post.retries.values()))
        taken += await webhook_deliveries.claim(
            session, limit=room, busy_endpoints=busy, retries=True, lease_seconds=lease, sealer=sealer
        )
    return taken


async def _attempt(resources: Resources, post: _Post, attempt: Attempt) -> None:
    try:
        outcome = await webhook_sending.send(
            resources.settings,
            url=attempt.url,
            secrets=attempt.secrets,
            message_id=attempt.delivery_id,
            body=attempt.body,
        )
        await _record(resources, attempt, outcome)
    except Exception:
        _log.exception("webhook %s: the attempt broke off; it is repeated", attempt.delivery_id)
    finally:
        post.end(attempt)


async def _record(resources: Resources, attempt: Attempt, outcome: Outcome) -> None:
    """Tried as long as the lease lasts. What is not recorded by then is sent again."""
    give_up_at = time.monotonic() + _RECORD_SECONDS
    if not outcome.is_success:
        reason = outcome.error or f"status {outcome.status}"
        _log.info("webhook %s, attempt %d: %s", attempt.delivery_id, attempt.number, reason)
    while True:
        try:
            async with resources.write() as session:
                await webhook_deliveries.record(
                    session,
                    attempt,
                    outcome,
                    retry_seconds=resources.settings.webhook_retry_seconds,
                    give_up_seconds=resources.settings.webhook_give_up_seconds,
                )
        except (Unavailable, SQLAlchemyError, OSError):
            if time.monotonic() > give_up_at:
                raise
            await asyncio.sleep(_LOOK_SECONDS)
        else:
            return
