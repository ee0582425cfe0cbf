"""Sealed secrets: what was stored in clear fits in the column once it is sealed, which the first start does."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    with op.batch_alter_table("webhook_endpoints", schema=None) as batch_op:
        batch_op.alter_column("secret", existing_type=sa.String(length=64), type_=sa.Text(), existing_nullable=False)
        batch_op.add_column(sa.Column("secret_hint", sa.String(length=16), nullable=False, server_default=""))
    # As they were shown until now: the last character is padding.
    op.execute(
        "UPDATE webhook_endpoints SET secret_hint = 'whsec_...' || substr(secret, length(secret) - 4, 4)"
        " WHERE substr(secret, 1, 6) = 'whsec_'"
    )
    with op.batch_alter_table("webhook_endpoints", schema=None) as batch_op:
        batch_op.alter_column("secret_hint", existing_type=sa.String(length=16), server_default=None)


def downgrade() -> None:
    """Sealed secrets stay sealed, which the version before cannot sign with: its endpoints are to be rotated."""
    with op.batch_alter_table("webhook_endpoints", schema=None) as batch_op:
        batch_op.drop_column("secret_hint")
