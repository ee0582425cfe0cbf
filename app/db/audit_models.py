"""The audit log: who did what, from where. Entries are added and read; the database itself refuses all else."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base


class Action(StrEnum):
    """What may be done. OpenAI's words where there are such, and others of their kind."""

    ORGANIZATION_CREATED = "organization.created"
    ORGANIZATION_DISABLED = "organization.disabled"
    ORGANIZATION_ENABLED = "organization.enabled"
    PROJECT_CREATED = "project.created"
    PROJECT_UPDATED = "project.updated"
    PROJECT_ARCHIVED = "project.archived"
    PROJECT_DISABLED = "project.disabled"
    PROJECT_ENABLED = "project.enabled"
    USER_ADDED = "user.added"
    USER_UPDATED = "user.updated"
    USER_DELETED = "user.deleted"
    MEMBER_ADDED = "project.user.added"
    MEMBER_UPDATED = "project.user.updated"
    MEMBER_REMOVED = "project.user.removed"
    SERVICE_ACCOUNT_CREATED = "service_account.created"
    SERVICE_ACCOUNT_UPDATED = "service_account.updated"
    SERVICE_ACCOUNT_DELETED = "service_account.deleted"
    API_KEY_CREATED = "api_key.created"
    API_KEY_UPDATED = "api_key.updated"
    API_KEY_DELETED = "api_key.deleted"
    LOGIN_FAILED = "login.failed"
    PERMISSION_CREATED = "checkpoint.permission.created"
    PERMISSION_DELETED = "checkpoint.permission.deleted"
    FILE_CREATED = "file.created"
    FILE_DELETED = "file.deleted"
    FILE_DOWNLOADED = "file.downloaded"
    UPLOAD_CREATED = "upload.created"
    UPLOAD_PART_CREATED = "upload.part.created"
    UPLOAD_COMPLETED = "upload.completed"
    UPLOAD_CANCELLED = "upload.cancelled"
    JOB_CREATED = "fine_tuning.job.created"
    JOB_CANCELLED = "fine_tuning.job.cancelled"
    JOB_PAUSED = "fine_tuning.job.paused"
    JOB_RESUMED = "fine_tuning.job.resumed"
    MODEL_CREATED = "model.created"
    MODEL_DELETED = "model.deleted"
    ADAPTER_DOWNLOADED = "adapter.downloaded"
    GRADER_RUN = "grader.run"
    WEBHOOK_CREATED = "webhook_endpoint.created"
    WEBHOOK_UPDATED = "webhook_endpoint.updated"
    WEBHOOK_ROTATED = "webhook_endpoint.secret_rotated"
    WEBHOOK_TESTED = "webhook_endpoint.tested"
    WEBHOOK_DELETED = "webhook_endpoint.deleted"
    BASE_MODEL_CREATED = "base_model.created"
    ALIAS_CREATED = "model_alias.created"
    ALIAS_DELETED = "model_alias.deleted"
    LIMITS_CHANGED = "project.limits.updated"
    WORKER_DRAINED = "worker.drained"
    AUDIT_LOG_EXPORTED = "audit_log.exported"
    AUDIT_LOG_PRUNED = "audit_log.pruned"


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
    action: Mapped[Action] = mapped_column(String(64))
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
