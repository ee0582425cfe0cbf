"""What a project may use, where it is not what the settings say."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import ProjectRow


class ProjectLimits(ProjectRow):
    """Set by the operator alone. None takes the server's default, and so does a project without a row."""

    __tablename__ = "project_limits"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    requests_per_minute: Mapped[int | None]
    upload_bytes: Mapped[int | None]
    upload_bytes_per_day: Mapped[int | None]
    stored_bytes: Mapped[int | None]
    files: Mapped[int | None]
    queued_jobs: Mapped[int | None]
    running_jobs: Mapped[int | None]
    gpu_seconds_per_month: Mapped[int | None]
    trained_tokens_per_job: Mapped[int | None]
