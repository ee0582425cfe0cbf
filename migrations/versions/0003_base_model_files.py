"""The files of base models, which now reach every worker."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "base_model_files",
        sa.Column("base_model_id", sa.String(length=256), nullable=False),
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("storage_key", sa.String(length=256), nullable=True),
        sa.Column("is_stored", sa.Boolean(), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("base_model_id", "name", name=op.f("pk_base_model_files")),
    )
    with op.batch_alter_table("base_model_files", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_base_model_files_storage_key"), ["storage_key"])
        batch_op.create_index(batch_op.f("ix_base_model_files_sha256"), ["sha256"])
    with op.batch_alter_table("base_models", schema=None) as batch_op:
        batch_op.add_column(sa.Column("linear_layers", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("base_models", schema=None) as batch_op:
        batch_op.drop_column("linear_layers")
    op.drop_table("base_model_files")
