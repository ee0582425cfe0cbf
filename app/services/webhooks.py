"""Webhook endpoints as their owners see them: make, change, rotate, test, and read how deliveries went."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from weakref import WeakValueDictionary

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app import outgoing
from app.auth import Principal
from app.db.audit_models import Action
from app.db.queries import alone, database_now, scoped
from app.db.webhook_models import WebhookDelivery, WebhookEndpoint
from app.errors import InvalidRequest, NotFound, Unavailable
from app.ids import new_id, utc_now
from app.outgoing import LookUps, OutgoingRefused
from app.schemas.webhooks import WebhookEndpointCreate, WebhookEndpointUpdate
from app.sealing import CannotSeal, CannotUnseal, Sealer
from app.services import audit, lookup, sealed_secrets, webhook_deliveries, webhook_sending, webhook_signing
from app.services.retries import ATTEMPTS_LAST, KEYS_LAST, REUSED, Attempt, KeyReused
from app.settings import Settings

MAX_ENDPOINTS = 20
_OVERLAP = timedelta(hours=24)
_MAX_OLD_SECRETS = 4
_TESTS_LOOK_UPS = 4
# By project, so that one whose name server sleeps spoils no other's tests; and apart from those of deliveries.
_look_ups: "WeakValueDictionary[str, LookUps]" = WeakValueDictionary()


@dataclass(frozen=True)
class Created:
    """`secret` is in clear, and shown to nobody else; `is_known` says that an earlier attempt had made the endpoint."""

    endpoint: WebhookEndpoint
    secret: str
    is_known: bool


async def create(
    session: AsyncSession,
    principal: Principal,
    *,
    made: Attempt,
    body: WebhookEndpointCreate,
    settings: Settings,
    sealer: Sealer,
) -> Created:
    """The endpoint of the request, as it is now.

    Raises InvalidRequest for a URL that is never called, for an endpoint too many, and where no secret can be kept;
    KeyReused for an `Idempotency-Key` that another endpoint was created with.
    """
    _check_url(body.url, settings)
    secret = webhook_signing.new_secret()
    await alone(session, f"webhook endpoints of {principal.project_id}")
    endpoint_id, earlier = await _made_before(session, principal, made, body)
    if earlier is not None:
        return Created(earlier, _in_clear(earlier, sealer), is_known=True)
    counted = scoped(WebhookEndpoint, principal).with_only_columns(func.count(WebhookEndpoint.id))
    if (await session.execute(counted)).scalar_one() >= MAX_ENDPOINTS:
        raise InvalidRequest(f"A project has {MAX_ENDPOINTS} webhook endpoints at most.", code="too_many_endpoints")
    now = await database_now(session)  # as events are dated: it gets those from now on
    endpoint = WebhookEndpoint(
        id=endpoint_id,
        project_id=principal.project_id,
        name=body.name,
        url=body.url,
        event_types=list(body.event_types),
        secret=_sealed(secret, sealer),
        secret_hint=webhook_signing.hint(secret),
        old_secrets=[],
        created_at=now,
        updated_at=now,
    )
    session.add(endpoint)
    audit.record(session, principal, Action.WEBHOOK_CREATED, endpoint.id)
    await session.flush()
    return Created(endpoint, secret, is_known=False)


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
    session: AsyncSession, principal: Principal, *, endpoint_id: str, keep_old: bool, sealer: Sealer
) -> tuple[WebhookEndpoint, str]:
    """Sign with a new secret from now on; with `keep_old` also with the present one, for a day. Returns as `create`."""
    endpoint = await get(session, principal, endpoint_id=endpoint_id, lock=True)
    now = await database_now(session)
    kept = []
    if keep_old:
        present = {"secret": endpoint.secret, "expires_at": int((now + _OVERLAP).timestamp())}
        kept = [present, *(old for old in endpoint.old_secrets if old["expires_at"] > now.timestamp())]
    secret = webhook_signing.new_secret()
    endpoint.secret = _sealed(secret, sealer)
    endpoint.secret_hint = webhook_signing.hint(secret)
    endpoint.old_secrets = kept[:_MAX_OLD_SECRETS]
    endpoint.updated_at = now
    audit.record(session, principal, Action.WEBHOOK_ROTATED, endpoint.id, keep_old=keep_old)
    await session.flush()
    return endpoint, secret


async def delete(session: AsyncSession, principal: Principal, *, endpoint_id: str) -> WebhookEndpoint:
    """With its deliveries, those that wait included."""
    endpoint = await get(session, principal, endpoint_id=endpoint_id, lock=True)
    await webhook_deliveries.remove_all(session, endpoint)
    await session.delete(endpoint)
    audit.record(session, principal, Action.WEBHOOK_DELETED, endpoint.id)
    return endpoint


async def test(endpoint: WebhookEndpoint, *, event_type: str, settings: Settings, sealer: Sealer) -> int:
    """Send a sample event, at once and once, and return the status of the answer. Call it with no session open.

    Raises InvalidRequest, which clients do not repeat, when there is no answer.
    """
    now = utc_now()
    try:
        signing = webhook_deliveries.active_secrets(endpoint, now, sealer)
    except CannotUnseal:
        raise Unavailable(webhook_deliveries.UNREADABLE) from None
    sample = webhook_deliveries.payload(new_id("evt_"), event_type, "sample", now)
    look_ups = _look_ups.setdefault(endpoint.project_id, LookUps(_TESTS_LOOK_UPS))  # kept by the look-ups themselves
    outcome = await webhook_sending.send(
        settings,
        url=endpoint.url,
        secrets=signing,
        message_id=new_id("wh_"),
        body=sample.encode(),
        look_ups=look_ups,
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


def _in_clear(endpoint: WebhookEndpoint, sealer: Sealer) -> str:
    try:
        return sealed_secrets.clear_text(endpoint.secret, sealer)
    except CannotUnseal:
        raise Unavailable(webhook_deliveries.UNREADABLE) from None


def _sealed(secret: str, sealer: Sealer) -> str:
    try:
        return sealer.seal(secret)
    except CannotSeal:
        sentence = (
            "Webhooks are not available on this server: its operator has given it no key to seal their secrets with "
            "(HONE_SECRET_KEYS)."
        )
        raise InvalidRequest(sentence, code="webhooks_not_available") from None


async def _made_before(
    session: AsyncSession, principal: Principal, made: Attempt, body: WebhookEndpointCreate
) -> tuple[str, WebhookEndpoint | None]:
    """The id for an endpoint, or also the one that an earlier attempt of the same request has created.

    Endpoints are few, and remember by themselves what made them: one with a key has its id of it; of clients that
    count their attempts, what a repeated one asks for was there some minutes ago or it was not.
    """
    now = await database_now(session)
    query = scoped(WebhookEndpoint, principal)
    if made.idempotency_key is not None:
        of_key = hashlib.sha256(f"{principal.project_id} {made.idempotency_key}".encode()).hexdigest()
        endpoint_id = f"we_{of_key[:24]}"
        found = await session.scalar(query.where(WebhookEndpoint.id == endpoint_id))
        if found is None:
            return endpoint_id, None
        if found.created_at > now - KEYS_LAST:
            if found.updated_at == found.created_at and not _is_as_asked(found, body):
                raise KeyReused(REUSED, code="idempotency_key_reused")
            return endpoint_id, found
    elif made.retry_count:
        recent = query.where(WebhookEndpoint.created_at > now - ATTEMPTS_LAST, WebhookEndpoint.url == body.url)
        for found in await session.scalars(recent.order_by(WebhookEndpoint.created_at.desc())):
            if _is_as_asked(found, body):
                return found.id, found
    return new_id("we_"), None


def _is_as_asked(endpoint: WebhookEndpoint, body: WebhookEndpointCreate) -> bool:
    asked = (body.name, body.url, list(body.event_types))
    return (endpoint.name, endpoint.url, list(endpoint.event_types)) == asked


def _check_url(url: str, settings: Settings) -> None:
    try:
        outgoing.checked(url, allowed_networks=settings.outgoing_allowed_networks)
    except OutgoingRefused as refusal:
        raise InvalidRequest(str(refusal), param="url", code="invalid_value") from None
