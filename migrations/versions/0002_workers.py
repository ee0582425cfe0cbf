"""Workers, and what decides which job is next."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("hostname", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("kinds", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("slots", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("unavailable_bases", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("drain_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("quantization", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("priority", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("pool", sa.String(length=64), nullable=False, server_default="default"))
        batch_op.add_column(sa.Column("is_preemptible", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("preempts_job_id", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("has_been_excused", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.drop_index(batch_op.f("ix_jobs_status_lease_owner_created_at"))
        batch_op.create_index(batch_op.f("ix_jobs_status_lease_owner_pool"), ["status", "lease_owner", "pool"])
        batch_op.create_index(batch_op.f("ix_jobs_claimed_from_project_id"), ["claimed_from", "project_id"])
        batch_op.create_index(batch_op.f("ix_jobs_lease_owner"), ["lease_owner"])


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobs_lease_owner"))
        batch_op.drop_index(batch_op.f("ix_jobs_claimed_from_project_id"))
        batch_op.drop_index(batch_op.f("ix_jobs_status_lease_owner_pool"))
        batch_op.create_index(
            batch_op.f("ix_jobs_status_lease_owner_created_at"), ["status", "lease_owner", "created_at"]
        )
        batch_op.drop_column("has_been_excused")
        batch_op.drop_column("preempts_job_id")
        batch_op.drop_column("queued_at")
        batch_op.drop_column("is_preemptible")
        batch_op.drop_column("pool")
        batch_op.drop_column("priority")
        batch_op.drop_column("quantization")
    op.drop_table("workers")
