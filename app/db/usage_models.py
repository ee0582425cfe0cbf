"""What was used: a ledger that is only added to, so that figures outlive what they are about."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import ProjectRow


class Measure(StrEnum):
    """What a record's amount counts. Times are milliseconds, so that sums are exact."""

    GPU_MILLISECONDS = "gpu_milliseconds"
    CPU_MILLISECONDS = "cpu_milliseconds"
    TRAINED_TOKENS = "trained_tokens"
    STORED_BYTES = "stored_bytes"
    UPLOADED_BYTES = "uploaded_bytes"  # counted for the limit of a day, and not shown
    JOBS_SUCCEEDED = "jobs_succeeded"
    JOBS_FAILED = "jobs_failed"
    JOBS_CANCELLED = "jobs_cancelled"


class UsageRecord(ProjectRow):
    """An amount of one measure on one day (its first moment, UTC). `model` is the base model; stored bytes have none.

    A job's records are written when its lease ends: until then its row holds what they will say (`meter_*`).
    """

    __tablename__ = "usage_records"
    __table_args__ = (
        Index(None, "day", "project_id"),
        Index(None, "project_id", "day"),
        Index(None, "job_id"),
    )
    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    organization_id: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(String(64))
    day: Mapped[datetime]
    model: Mapped[str | None] = mapped_column(String(256))
    measure: Mapped[Measure] = mapped_column(String(32))
    amount: Mapped[int]
