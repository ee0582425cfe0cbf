"""Webhook endpoints on the wire."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from app.schemas import examples
from app.schemas.common import Wire
from worker.contract.text import Text

# OpenAI's, so that code which asks for more than fine-tuning need not be changed; and Hone's own at the end. Only
# those of `webhook_events.TYPES` ever happen here.
EventType = Literal[
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "response.completed",
    "response.failed",
    "response.cancelled",
    "response.incomplete",
    "eval.run.succeeded",
    "eval.run.failed",
    "eval.run.canceled",
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "realtime.call.incoming",
    "video.completed",
    "video.failed",
    "agent.environment.ready",
    "agent.environment.failed",
    "agent.environment.suspended",
    "agent.environment.expired",
    "agent.session.created",
    "agent.session.action_required",
    "agent.session.in_progress",
    "agent.session.idle",
    "agent.session.failed",
    "safety.alert.created",
    "fine_tuning.job.paused",
]


def _each_once(given: list[EventType]) -> list[EventType]:
    return list(dict.fromkeys(given))


Name = Annotated[Text, Field(min_length=1, max_length=256)]
Url = Annotated[Text, Field(min_length=1, max_length=2048, description="Where deliveries are posted to, by https.")]
EventTypes = Annotated[
    list[EventType],
    Field(
        min_length=1, max_length=64, description="What to tell of. Of these, Hone's own is `fine_tuning.job.paused`."
    ),
    AfterValidator(_each_once),
]


class WebhookEndpointCreate(Wire):
    model_config = examples.WEBHOOK_ENDPOINT_CREATE

    name: Name
    url: Url
    event_types: EventTypes


class WebhookEndpointUpdate(Wire):
    model_config = examples.WEBHOOK_ENDPOINT_UPDATE

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class SecretRotation(Wire):
    model_config = examples.WEBHOOK_ROTATION

    keep_old_secret_active_for_24_hours: bool = False


class WebhookTest(Wire):
    model_config = examples.WEBHOOK_TEST

    event_type: EventType


class WebhookEndpointRead(Wire):
    model_config = examples.WEBHOOK_ENDPOINT

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int = Field(description="When its configuration or its secret last changed.")
    signing_secret_hint: str


class WebhookEndpointWithSecret(WebhookEndpointRead):
    model_config = examples.WEBHOOK_ENDPOINT_WITH_SECRET

    signing_secret: str = Field(description="Shown here and never again.")


class WebhookEndpointList(Wire):
    model_config = examples.WEBHOOK_ENDPOINTS

    object: Literal["list"] = "list"
    data: list[WebhookEndpointRead]
    first_id: str | None
    last_id: str | None
    has_more: bool


class WebhookEndpointDeleted(Wire):
    model_config = examples.WEBHOOK_ENDPOINT_DELETED

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookTestResult(Wire):
    model_config = examples.WEBHOOK_TEST_RESULT

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    success: Literal[True] = Field(default=True, description="There was an answer; `status_code` says which.")
    status_code: int
    event_type: str
    webhook_endpoint_id: str


class WebhookEventTypeList(Wire):
    model_config = examples.WEBHOOK_EVENT_TYPES

    object: Literal["list"] = "list"
    data: list[str]


class WebhookDeliveryRead(Wire):
    model_config = examples.WEBHOOK_DELIVERY

    id: str = Field(description="Sent as `webhook-id` at every attempt: what a receiver tells repetitions by.")
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    webhook_endpoint_id: str
    event_id: str
    event_type: str
    payload: str = Field(description="What is sent, byte for byte.")
    created_at: int
    status: Literal["pending", "delivered", "failed"] = Field(description="`failed` is final: nothing more is tried.")
    attempts: int
    last_attempt_at: int | None
    next_attempt_at: int | None
    delivered_at: int | None
    last_status_code: int | None
    last_error: str | None


class WebhookDeliveryList(Wire):
    model_config = examples.WEBHOOK_DELIVERIES

    object: Literal["list"] = "list"
    data: list[WebhookDeliveryRead]
    first_id: str | None
    last_id: str | None
    has_more: bool
