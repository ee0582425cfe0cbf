"""Webhook endpoints as their owners see them: make, change, rotate, test, and read how deliveries went."""

from datetime import timedelta

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app import outgoing
from app.auth import Principal
from app.db.audit_models import Action
from app.db.queries import alone, database_now, scoped
from app.db.webhook_models import WebhookDelivery, WebhookEndpoint
from app.errors import InvalidRequest, NotFound
from app.ids import new_id, utc_now
from app.outgoing import OutgoingRefused
from app.schemas.webhooks import WebhookEndpointCreate, WebhookEndpointUpdate
from app.services import audit, lookup, webhook_deliveries, webhook_sending, webhook_signing
from app.settings import Settings

MAX_ENDPOINTS = 20
_OVERLAP = timedelta(hours=24)
_MAX_OLD_SECRETS = 4


async def create(
    session: AsyncSession, principal: Principal, *, body: WebhookEndpointCreate, settings: Settings
) -> WebhookEndpoint:
    """Raises InvalidRequest for a URL that is never called, and for an endpoint too many."""
    _check_url(body.url, settings)
    await alone(session, f"webhook endpoints of {principal.project_id}")
    counted = scoped(WebhookEndpoint, principal).with_only_columns(func.count(WebhookEndpoint.id))
    if (await session.execute(counted)).scalar_one() >= MAX_ENDPOINTS:
        raise InvalidRequest(f"A project has {MAX_ENDPOINTS} webhook endpoints at most.", code="too_many_endpoints")
    now = await database_now(session)  # as events are dated: it gets those from now on
    endpoint = WebhookEndpoint(
        id=new_id("we_"),
        project_id=principal.project_id,
        name=body.name,
        url=body.url,
        event_types=list(body.event_types),
        secret=webhook_signing.new_secret(),
        old_secrets=[],
        created_at=now,
        updated_at=now,
    )
    session.add(endpoint)
    audit.record(session, principal, Action.WEBHOOK_CREATED, endpoint.id)
    await session.flush()
    return endpoint


async def get(session: AsyncSession, principal: Principal, *, endpoint_id: str, lock: bool = False) -> WebhookEndpoint:
    query = scoped(WebhookEndpoint, principal)
    query = query.with_for_update() if lock else query
    endpoint = await lookup.find(session, query, WebhookEndpoint.id, endpoint_id)
    if endpoint is None:
        sentence = f"No such webhook endpoint: {lookup.shown(endpoint_id)}"
        raise NotFound(sentence, param="webhook_endpoint_id", code="webhook_endpoint_not_found")
    return endpoint


async def search(
    session: AsyncSession, principal: Principal, *, after: str | None, limit: int
) -> lookup.Page[WebhookEndpoint]:
    order = (WebhookEndpoint.created_at, WebhookEndpoint.id)
    query = scoped(WebhookEndpoint, principal)
    return await lookup.page(session, query, cursor=WebhookEndpoint.id, order=order, after=after, limit=limit)


async def update(
    session: AsyncSession, principal: Principal, *, endpoint_id: str, body: WebhookEndpointUpdate, settings: Settings
) -> WebhookEndpoint:
    """Change what is given. What waits to be delivered goes to the new URL."""
    endpoint = await get(session, principal, endpoint_id=endpoint_id, lock=True)
    given = {name: value for name, value in body.model_dump().items() if value is not None}
    changes = {name: value for name, value in given.items() if getattr(endpoint, name) != value}
    if "url" in changes:
        _check_url(changes["url"], settings)
    for name, value in changes.items():
        setattr(endpoint, name, value)
    if changes:
        endpoint.updated_at = await database_now(session)
        audit.record(session, principal, Action.WEBHOOK_UPDATED, endpoint.id, changed=sorted(changes))
    await session.flush()
    return endpoint


async def rotate_secret(
    session: AsyncSession, principal: Principal, *, endpoint_id: str, keep_old: bool
) -> WebhookEndpoint:
    """Sign with a new secret from now on; with `keep_old` also with the present one, for a day."""
    endpoint = await get(session, principal, endpoint_id=endpoint_id, lock=True)
    now = await database_now(session)
    kept = []
    if keep_old:
        present = {"secret": endpoint.secret, "expires_at": int((now + _OVERLAP).timestamp())}
        kept = [present, *(old for old in endpoint.old_secrets if old["expires_at"] > now.timestamp())]
    endpoint.secret = webhook_signing.new_secret()
    endpoint.old_secrets = kept[:_MAX_OLD_SECRETS]
    endpoint.updated_at = now
    audit.record(session, principal, Action.WEBHOOK_ROTATED, endpoint.id, keep_old=keep_old)
    await session.flush()
    return endpoint


async def delete(session: AsyncSession, principal: Principal, *, endpoint_id: str) -> WebhookEndpoint:
    """With its deliveries, those that wait included."""
    endpoint = await get(session, principal, endpoint_id=endpoint_id, lock=True)
    await webhook_deliveries.remove_all(session, endpoint)
    await session.delete(endpoint)
    audit.record(session, principal, Action.WEBHOOK_DELETED, endpoint.id)
    return endpoint


async def test(endpoint: WebhookEndpoint, *, event_type: str, settings: Settings) -> int:
    """Send a sample event, at once and once, and return the status of the answer. Call it with no session open.

    Raises InvalidRequest, which clients do not repeat, when there is no answer.
    """
    now = utc_now()
    sample = webhook_deliveries.payload(new_id("evt_"), event_type, "sample", now)
    outcome = await webhook_sending.send(
        settings,
        url=endpoint.url,
        secrets=webhook_deliveries.active_secrets(endpoint, now),
        message_id=new_id("wh_"),
        body=sample.encode(),
    )
    if outcome.status is None:
        raise InvalidRequest(f"The endpoint could not be reached: {outcome.error}", code="webhook_delivery_failed")
    return outcome.status


async def list_deliveries(
    session: AsyncSession, principal: Principal, *, endpoint_id: str, after: str | None, limit: int
) -> lookup.Page[WebhookDelivery]:
    endpoint = await get(session, principal, endpoint_id=endpoint_id)
    query = scoped(WebhookDelivery, principal).where(WebhookDelivery.endpoint_id == endpoint.id)
    order = (WebhookDelivery.created_at, WebhookDelivery.id)
    return await lookup.page(session, query, cursor=WebhookDelivery.id, order=order, after=after, limit=limit)


def _check_url(url: str, settings: Settings) -> None:
    try:
        outgoing.checked(url, allowed_networks=settings.outgoing_allowed_networks)
    except OutgoingRefused as refusal:
        raise InvalidRequest(str(refusal), param="url", code="invalid_value") from None
