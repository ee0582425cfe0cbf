"""The tables of webhooks: who is told, what is yet to be told, and how the telling went."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import ProjectRow


class WebhookEndpoint(ProjectRow):
    """A receiver. Its secrets are needed to sign with, so they stand here, sealed (app.sealing), and nowhere else.

    `old_secrets` are objects with `secret` and `expires_at` (unix seconds): those that are still signed with too.
    `secret_hint` is what may be shown of the present one.
    """

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "project_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(256))
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[str]]
    secret: Mapped[str] = mapped_column(Text)
    secret_hint: Mapped[str] = mapped_column(String(16))
    old_secrets: Mapped[list[dict[str, Any]]]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class WebhookEvent(ProjectRow):
    """What has happened and no endpoint has been told of: written with the change itself, gone once the deliveries
    that it asks for are rows."""

    __tablename__ = "webhook_events"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    type: Mapped[str] = mapped_column(String(64))
    subject_id: Mapped[str] = mapped_column(String(64))  # of the job, say
    created_at: Mapped[datetime]


class WebhookDelivery(ProjectRow):
    """One event for one endpoint. `next_attempt_at` is None once it is delivered or given up.

    While an attempt is under way, `next_attempt_at` is when it counts as lost. `payload` is what is signed and sent,
    byte for byte, at each attempt.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(None, "event_id", "endpoint_id", unique=True),
        Index(None, "endpoint_id", "created_at", "id"),
        Index(None, "next_attempt_at"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    event_id: Mapped[str] = mapped_column(String(64))
    event_type: Mapped[str] = mapped_column(String(64))
    subject_id: Mapped[str] = mapped_column(String(64))
    payload: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    last_attempt_at: Mapped[datetime | None]
    next_attempt_at: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]
    last_status_code: Mapped[int | None]
    last_error: Mapped[str | None] = mapped_column(Text)
