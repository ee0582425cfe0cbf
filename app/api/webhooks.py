"""/v1/webhook_endpoints and /v1/webhook_event_types"""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from app.api import access
from app.api.access import needs
from app.api.deps import PLAIN_INTEGER, After, Caller, Opened, ReadSession, WriteSession
from app.api.retries import REPEATED, ThisAttempt
from app.api.times import unix, unix_or_none
from app.api.trail import Trail
from app.db.audit_models import Action
from app.db.webhook_models import WebhookDelivery, WebhookEndpoint
from app.schemas.webhooks import (
    SecretRotation,
    WebhookDeliveryList,
    WebhookDeliveryRead,
    WebhookEndpointCreate,
    WebhookEndpointDeleted,
    WebhookEndpointList,
    WebhookEndpointRead,
    WebhookEndpointUpdate,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
    WebhookTest,
    WebhookTestResult,
)
from app.services import webhook_events, webhooks

router = APIRouter(prefix="/v1", tags=["Webhooks"], dependencies=needs("jobs"), responses=access.RESPONSES)

Limit = Annotated[int, Field(ge=0, le=100), PLAIN_INTEGER]


@router.get("/webhook_event_types")
async def list_webhook_event_types() -> WebhookEventTypeList:
    """What this server tells of. Endpoints may ask for OpenAI's other event types, which never happen here."""
    return WebhookEventTypeList(data=list(webhook_events.TYPES))


@router.post("/webhook_endpoints", responses=REPEATED)
async def create_webhook_endpoint(
    body: WebhookEndpointCreate,
    principal: Caller,
    made: ThisAttempt,
    session: WriteSession,
    resources: Opened,
    response: Response,
) -> WebhookEndpointWithSecret:
    """Deliveries are signed with the secret that this answer holds. A request that is sent again, with an
    `Idempotency-Key` or by OpenAI's clients themselves, is answered with the endpoint that it has created already."""
    settings, sealer = resources.settings, resources.sealer
    created = await webhooks.create(session, principal, made=made, body=body, settings=settings, sealer=sealer)
    if created.is_known:
        response.headers["Idempotent-Replayed"] = "true"
    return _with_secret(created.endpoint, created.secret)


@router.get("/webhook_endpoints")
async def list_webhook_endpoints(
    principal: Caller, session: ReadSession, after: After = None, limit: Limit = 20
) -> WebhookEndpointList:
    """List the project's endpoints, newest first."""
    page = await webhooks.search(session, principal, after=after, limit=limit)
    data = [_read(endpoint) for endpoint in page.rows]
    first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
    return WebhookEndpointList(data=data, first_id=first_id, last_id=last_id, has_more=page.has_more)


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
async def retrieve_webhook_endpoint(
    webhook_endpoint_id: str, principal: Caller, session: ReadSession
) -> WebhookEndpointRead:
    return _read(await webhooks.get(session, principal, endpoint_id=webhook_endpoint_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}")
async def update_webhook_endpoint(
    webhook_endpoint_id: str, body: WebhookEndpointUpdate, principal: Caller, session: WriteSession, resources: Opened
) -> WebhookEndpointRead:
    """Change what is given. Deliveries that wait go to the new URL."""
    settings = resources.settings
    updated = await webhooks.update(session, principal, endpoint_id=webhook_endpoint_id, body=body, settings=settings)
    return _read(updated)


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
async def delete_webhook_endpoint(
    webhook_endpoint_id: str, principal: Caller, session: WriteSession
) -> WebhookEndpointDeleted:
    """Delete an endpoint with its deliveries, those that wait included."""
    return WebhookEndpointDeleted(id=(await webhooks.delete(session, principal, endpoint_id=webhook_endpoint_id)).id)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret")
async def rotate_webhook_endpoint_secret(
    webhook_endpoint_id: str,
    principal: Caller,
    session: WriteSession,
    resources: Opened,
    body: SecretRotation | None = None,
) -> WebhookEndpointWithSecret:
    """Sign with a new secret. If the old one is kept, deliveries carry a signature by each for 24 hours."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    endpoint, secret = await webhooks.rotate_secret(
        session, principal, endpoint_id=webhook_endpoint_id, keep_old=keep_old, sealer=resources.sealer
    )
    return _with_secret(endpoint, secret)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test")
async def test_webhook_endpoint(
    webhook_endpoint_id: str, body: WebhookTest, request: Request, principal: Caller, resources: Opened
) -> WebhookTestResult:
    """Send a sample event, once and now. It is not in the list of deliveries."""
    async with resources.read() as session:  # closed again before the receiver is waited for
        endpoint = await webhooks.get(session, principal, endpoint_id=webhook_endpoint_id)
    trail: Trail = request.app.state.trail
    trail.note(principal, Action.WEBHOOK_TESTED, endpoint.id)
    settings, sealer = resources.settings, resources.sealer
    status = await webhooks.test(endpoint, event_type=body.event_type, settings=settings, sealer=sealer)
    return WebhookTestResult(status_code=status, event_type=body.event_type, webhook_endpoint_id=endpoint.id)


@router.get("/webhook_endpoints/{webhook_endpoint_id}/deliveries")
async def list_webhook_deliveries(
    webhook_endpoint_id: str, principal: Caller, session: ReadSession, after: After = None, limit: Limit = 20
) -> WebhookDeliveryList:
    """List what was sent to an endpoint or is to be, newest first. An extension of Hone's."""
    page = await webhooks.list_deliveries(session, principal, endpoint_id=webhook_endpoint_id, after=after, limit=limit)
    data = [_read_delivery(delivery) for delivery in page.rows]
    first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
    return WebhookDeliveryList(data=data, first_id=first_id, last_id=last_id, has_more=page.has_more)


def _read(endpoint: WebhookEndpoint) -> WebhookEndpointRead:
    return WebhookEndpointRead(
        id=endpoint.id,
        name=endpoint.name,
        url=endpoint.url,
        event_types=endpoint.event_types,
        created_at=unix(endpoint.created_at),
        updated_at=unix(endpoint.updated_at),
        signing_secret_hint=endpoint.secret_hint,
    )


def _with_secret(endpoint: WebhookEndpoint, secret: str) -> WebhookEndpointWithSecret:
    return WebhookEndpointWithSecret(**_read(endpoint).model_dump(), signing_secret=secret)


def _read_delivery(delivery: WebhookDelivery) -> WebhookDeliveryRead:
    over = "delivered" if delivery.delivered_at is not None else "failed"
    return WebhookDeliveryRead(
        id=delivery.id,
        webhook_endpoint_id=delivery.endpoint_id,
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        payload=delivery.payload,
        created_at=unix(delivery.created_at),
        status=over if delivery.next_attempt_at is None else "pending",
        attempts=delivery.attempts,
        last_attempt_at=unix_or_none(delivery.last_attempt_at),
        next_attempt_at=unix_or_none(delivery.next_attempt_at),
        delivered_at=unix_or_none(delivery.delivered_at),
        last_status_code=delivery.last_status_code,
        last_error=delivery.last_error,
    )
