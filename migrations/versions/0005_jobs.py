"""A checkpoint outlives the state that its job was resumed from."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_COLUMNS = (
    ("state_key", sa.String(length=256), ""),
    ("state_sha256", sa.String(length=64), ""),
    ("state_bytes", sa.BigInteger(), 0),
)


def upgrade() -> None:
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        for name, kind, _ in _COLUMNS:
            batch_op.alter_column(name, existing_type=kind, nullable=True)


def downgrade() -> None:
    checkpoints = sa.table("checkpoints", *(sa.column(name, kind) for name, kind, _ in _COLUMNS))
    op.execute(sa.update(checkpoints).where(checkpoints.c.state_key.is_(None)).values({n: v for n, _, v in _COLUMNS}))
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        for name, kind, _ in _COLUMNS:
            batch_op.alter_column(name, existing_type=kind, nullable=False)
