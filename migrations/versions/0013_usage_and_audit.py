"""Usage and audit.

The audit log's triggers hang on its table: a later migration that makes the table anew must make them anew, too.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_REFUSAL = "the audit log is append-only"
_KEPT = "NOT EXISTS (SELECT 1 FROM audit_horizons WHERE horizon > OLD.effective_at)"

_SQLITE = [
    f"""
    CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table}
    BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END
    """
    for table in ("audit_entries", "audit_horizons")
] + [
    f"""
    CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON audit_entries WHEN {_KEPT}
    BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END
    """,
    f"""
    CREATE TRIGGER audit_horizons_no_delete BEFORE DELETE ON audit_horizons
    BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END
    """,
]
_POSTGRESQL = [
    f"""
    CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION '{_REFUSAL}' USING ERRCODE = 'insufficient_privilege'; END $$
    """,
    f"""
    CREATE FUNCTION audit_refuse_kept() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF {_KEPT} THEN RAISE EXCEPTION '{_REFUSAL}' USING ERRCODE = 'insufficient_privilege'; END IF;
        RETURN OLD;
    END $$
    """,
    """
    CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION audit_refuse_kept()
    """,
    """
    CREATE TRIGGER audit_horizons_no_delete BEFORE DELETE ON audit_horizons
    FOR EACH ROW EXECUTE FUNCTION audit_refuse()
    """,
    *(
        f"""
        CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table}
        FOR EACH ROW EXECUTE FUNCTION audit_refuse()
        """
        for table in ("audit_entries", "audit_horizons")
    ),
    *(
        f"""
        CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()
        """
        for table in ("audit_entries", "audit_horizons")
    ),
]


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("effective_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("target_id", sa.String(length=256), nullable=True),
        sa.Column("details", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("actor_kind", sa.String(length=16), nullable=False),
        sa.Column("actor_id", sa.String(length=64), nullable=True),
        sa.Column("source_address", sa.String(length=64), nullable=True),
        sa.Column("user_agent", sa.String(length=200), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
    )
    for columns in (
        ["effective_at", "id"],
        ["project_id", "effective_at", "id"],
        ["organization_id", "effective_at", "id"],
    ):
        op.create_index(op.f(f"ix_audit_entries_{'_'.join(columns)}"), "audit_entries", columns)
    op.create_table(
        "audit_horizons",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("horizon", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_horizons")),
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(sa.text(statement))
    op.create_table(
        "usage_records",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=True),
        sa.Column("day", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=True),
        sa.Column("measure", sa.String(length=32), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_usage_records_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_records")),
    )
    for columns in (["day", "project_id"], ["project_id", "day"], ["job_id"]):
        op.create_index(op.f(f"ix_usage_records_{'_'.join(columns)}"), "usage_records", columns)
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("meter_started_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("meter_seen_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("meter_gpus", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("meter_tokens", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        for column in ("meter_tokens", "meter_gpus", "meter_seen_at", "meter_started_at"):
            batch_op.drop_column(column)
    op.drop_table("usage_records")
    op.drop_table("audit_entries")
    op.drop_table("audit_horizons")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.text("DROP FUNCTION audit_refuse()"))
        op.execute(sa.text("DROP FUNCTION audit_refuse_kept()"))
