"""Limits: what a project may use, where it is not what the settings say."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_LIMITS = (
    "requests_per_minute",
    "upload_bytes",
    "upload_bytes_per_day",
    "stored_bytes",
    "files",
    "queued_jobs",
    "running_jobs",
    "gpu_seconds_per_month",
    "trained_tokens_per_job",
)


def upgrade() -> None:
    op.create_table(
        "project_limits",
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in _LIMITS),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_project_limits_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_project_limits")),
    )


def downgrade() -> None:
    op.drop_table("project_limits")
