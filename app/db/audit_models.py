"""The audit log: who did what, from where. Entries are added and read; the database itself refuses all else."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base


class AuditEntry(Base):
    """One change or one download. No foreign keys: an entry outlives what it names.

    Without `project_id` it is the organization's, without either the installation's. `actor_kind` is api_key, cli,
    worker, system or anonymous; `details` hold ids and plain words, never what a user wrote.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index(None, "effective_at", "id"),
        Index(None, "project_id", "effective_at", "id"),
        Index(None, "organization_id", "effective_at", "id"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    effective_at: Mapped[datetime]
    organization_id: Mapped[str | None] = mapped_column(String(64))
    project_id: Mapped[str | None] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    outcome: Mapped[str] = mapped_column(String(16))
    target_id: Mapped[str | None] = mapped_column(String(256))
    details: Mapped[dict[str, Any] | None]
    actor_kind: Mapped[str] = mapped_column(String(16))
    actor_id: Mapped[str | None] = mapped_column(String(64))
    source_address: Mapped[str | None] = mapped_column(String(64))
    user_agent: Mapped[str | None] = mapped_column(String(200))
    request_id: Mapped[str | None] = mapped_column(String(64))


class AuditHorizon(Base):
    """The one door to removing entries: those before the latest horizon may be deleted, and horizons stay for ever."""

    __tablename__ = "audit_horizons"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    horizon: Mapped[datetime]
    created_at: Mapped[datetime]
