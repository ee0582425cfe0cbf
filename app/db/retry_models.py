"""What is remembered of requests, so that one that is sent again does nothing again."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import JobRow


class JobRequest(JobRow):
    """A request that has created a job, written in the job's own transaction.

    It has an `idempotency_key`, or a `retry_count`, that of the latest attempt which was answered with the job.
    """

    __tablename__ = "job_requests"
    __table_args__ = (
        Index(None, "project_id", "idempotency_key", unique=True),
        Index(None, "api_key_id", "body_sha256"),
        Index(None, "created_at"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    retry_count: Mapped[int | None]
    body_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
