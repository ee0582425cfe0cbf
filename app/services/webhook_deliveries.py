"""The telling of what webhooks tell: from what happened to deliveries, and from these to attempts, by any worker.

These queries reach across tenants, as those of leases do, because a worker serves them all; what they find goes to
nobody but the endpoint that it is for.
"""

import json
import logging
import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.queries import database_now, of_project
from app.db.webhook_models import WebhookDelivery, WebhookEndpoint, WebhookEvent
from app.ids import new_id
from app.sealing import CannotUnseal, Sealer
from app.services import sealed_secrets
from app.services.webhook_sending import Outcome

_log = logging.getLogger(__name__)
UNREADABLE = "The server cannot read the endpoint's signing secret. Its operator must give it the key back."
_GONE = 410
_UNREADABLE_DELAY = timedelta(seconds=60)
_MAX_DELAY = timedelta(hours=6)
_MAX_EVENTS_AT_ONCE = 100


@dataclass(frozen=True)
class Attempt:
    """One sending of a delivery. `number` counts from 1; the secrets are those to sign with now."""

    delivery_id: str
    endpoint_id: str
    number: int
    url: str
    secrets: tuple[str, ...]
    body: bytes


async def has_work(session: AsyncSession, *, busy_endpoints: Collection[str]) -> bool:
    """Whether there is something to distribute, or to send to an endpoint that is not busy."""
    now = await database_now(session)
    due = select(WebhookDelivery.id).where(_is_due(now), WebhookDelivery.endpoint_id.not_in(tuple(busy_endpoints)))
    return bool(await session.scalar(select(or_(select(WebhookEvent.id).exists(), due.exists()))))


async def distribute(session: AsyncSession) -> None:
    """Turn what has happened into a delivery for each endpoint that was there by then and has asked for it."""
    events = select(WebhookEvent).order_by(WebhookEvent.created_at).limit(_MAX_EVENTS_AT_ONCE)
    now = await database_now(session)
    for event in await session.scalars(events.with_for_update(skip_locked=True)):
        # An endpoint that is being deleted is waited for, and gone then; one that is told meanwhile waits for us.
        endpoints = of_project(WebhookEndpoint, event.project_id).where(WebhookEndpoint.created_at <= event.created_at)
        for endpoint in await session.scalars(endpoints.with_for_update(read=True, key_share=True)):
            if event.type in endpoint.event_types:
                session.add(_delivery(event, endpoint, now))
        await session.delete(event)


async def claim(
    session: AsyncSession,
    *,
    limit: int,
    busy_endpoints: Collection[str],
    retries: bool,
    lease_seconds: float,
    sealer: Sealer,
) -> list[Attempt]:
    """Up to `limit` due deliveries for this worker to attempt, one an endpoint: first attempts, or `retries`.

    Each is due again when the lease ends, should nothing be recorded by then. The attempt counts from now on.
    Those whose secret cannot be read wait, for as long as that is so: it is none of the receiver's faults.
    """
    if limit <= 0:
        return []
    now = await database_now(session)
    mine = (_is_due(now), WebhookDelivery.attempts > 0 if retries else WebhookDelivery.attempts == 0)
    order = (WebhookDelivery.next_attempt_at, WebhookDelivery.id)
    place = func.row_number().over(partition_by=WebhookDelivery.endpoint_id, order_by=order)
    free = WebhookDelivery.endpoint_id.not_in(tuple(busy_endpoints))
    ranked = select(WebhookDelivery.id, place.label("place")).where(*mine, free).subquery()
    firsts = select(ranked.c.id).where(ranked.c.place == 1)
    # The conditions once more, because a row that another worker has just claimed is looked at again without ranks.
    query = select(WebhookDelivery).where(WebhookDelivery.id.in_(firsts), *mine).order_by(*order).limit(limit)
    attempts = []
    for delivery in await session.scalars(query.with_for_update(skip_locked=True)):
        endpoints = of_project(WebhookEndpoint, delivery.project_id)
        endpoint = (await session.scalars(endpoints.where(WebhookEndpoint.id == delivery.endpoint_id))).one()
        try:
            signing = active_secrets(endpoint, now, sealer)
        except CannotUnseal:
            _log.error("webhook %s waits: no key of HONE_SECRET_KEYS opens the secret of %s", delivery.id, endpoint.id)
            delivery.last_error = UNREADABLE
            delivery.next_attempt_at = now + _UNREADABLE_DELAY
            continue
        delivery.attempts += 1
        delivery.last_attempt_at = now
        delivery.next_attempt_at = now + timedelta(seconds=lease_seconds)
        body = delivery.payload.encode()
        attempts.append(Attempt(delivery.id, endpoint.id, delivery.attempts, endpoint.url, signing, body))
    return attempts


async def record(
    session: AsyncSession, attempt: Attempt, outcome: Outcome, *, retry_seconds: float, give_up_seconds: float
) -> None:
    """Write down how an attempt went, and when the next is due, if there is one.

    Another worker may have made a later attempt meanwhile: a success counts even so, a failure does not. Of a
    delivery that went with its endpoint nothing is left to write to.
    """
    now = await database_now(session)
    query = select(WebhookDelivery).where(WebhookDelivery.id == attempt.delivery_id).with_for_update()
    delivery = await session.scalar(query)
    if delivery is None or delivery.delivered_at is not None:
        return
    if not outcome.is_success and delivery.attempts != attempt.number:
        return
    delivery.last_status_code = outcome.status
    delivery.last_error = outcome.error
    if outcome.is_success:
        delivery.delivered_at = now
        delivery.next_attempt_at = None
    else:
        last_chance = delivery.created_at + timedelta(seconds=give_up_seconds)
        is_over = outcome.status == _GONE or now >= last_chance
        following = now + delay(attempt.number, retry_seconds=retry_seconds)
        delivery.next_attempt_at = None if is_over else min(following, max(last_chance, now + timedelta(seconds=1)))


def delay(attempt: int, *, retry_seconds: float) -> timedelta:
    """How long to wait after the failure of that attempt: twice as long each time, about six hours at most."""
    doubled = retry_seconds * 2.0 ** min(attempt - 1, 30)
    return min(timedelta(seconds=doubled), _MAX_DELAY) * random.uniform(0.8, 1.2)  # noqa: S311 - so that they spread


async def forget(session: AsyncSession, *, older_than: timedelta) -> None:
    """Remove deliveries of that age that are over."""
    before = await database_now(session) - older_than
    is_over = WebhookDelivery.next_attempt_at.is_(None)
    await session.execute(delete(WebhookDelivery).where(is_over, WebhookDelivery.created_at < before))


async def remove_all(session: AsyncSession, endpoint: WebhookEndpoint) -> None:
    """Those of an endpoint that is deleted and locked: none is added meanwhile."""
    await session.execute(delete(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint.id))


def active_secrets(endpoint: WebhookEndpoint, now: datetime, sealer: Sealer) -> tuple[str, ...]:
    """Those to sign with, the newest first. Raises CannotUnseal: with some of them, some receivers would be lost."""
    old = (kept["secret"] for kept in endpoint.old_secrets if kept["expires_at"] > now.timestamp())
    return tuple(sealed_secrets.clear_text(secret, sealer) for secret in (endpoint.secret, *old))


def _is_due(now: datetime):
    return WebhookDelivery.next_attempt_at <= now


def _delivery(event: WebhookEvent, endpoint: WebhookEndpoint, now: datetime) -> WebhookDelivery:
    return WebhookDelivery(
        id=new_id("wh_"),
        project_id=event.project_id,
        endpoint_id=endpoint.id,
        event_id=event.id,
        event_type=event.type,
        subject_id=event.subject_id,
        payload=payload(event.id, event.type, event.subject_id, event.created_at),
        created_at=now,
        attempts=0,
        next_attempt_at=now,
    )


def payload(event_id: str, event_type: str, subject_id: str, created_at: datetime) -> str:
    """What is sent: no status and no model, as at OpenAI. Whoever wants to know more asks for the job."""
    body = {
        "id": event_id,
        "object": "event",
        "type": event_type,
        "created_at": int(created_at.timestamp()),
        "data": {"id": subject_id},
    }
    return json.dumps(body, separators=(",", ":"))
