"""Run by alembic, through `app.db.migrations` or its own command line, on a connection it is given or opens."""

from typing import Literal

from alembic import context
from sqlalchemy import Connection

import app.db.models
import app.db.webhook_models  # noqa: F401 - the metadata is that of the tables that were loaded
from app.db import migrations
from app.db.base import Base, UtcDateTime
from app.settings import Settings


def _render_item(kind: str, item: object, _autogenerate: object) -> str | Literal[False]:
    """Migrations stand on their own: they must not change when a type of ours does."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        render_item=_render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


_given: Connection | None = context.config.attributes.get("connection")
if _given is not None:
    _run(_given)
else:
    migrations.run(Settings().resolved_database_url, _run)
