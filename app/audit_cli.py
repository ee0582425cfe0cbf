"""`hone audit`: the log of who did what, from where."""

import asyncio
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from app.console import DataDirectory, settings_of
from app.db import migrations
from app.db.audit_models import Action
from app.db.queries import View
from app.resources import open_resources
from app.services import audit

audit_group = typer.Typer(no_args_is_help=True, help="The audit log: who did what, from where.")


@audit_group.callback()
def of_audit() -> None:
    """Without a callback, a group of one command would be that command."""


@audit_group.command("export")
def export_audit_log(
    since: Annotated[datetime | None, typer.Option(help="Leave out what is older, in UTC.", show_default=False)] = None,
    data: DataDirectory = None,
) -> None:
    """Print the audit log, oldest first: one JSON object a line, as GET /v1/organization/audit_logs/export."""
    from app.api import audit_logs

    settings = settings_of(data)
    migrations.require_current(settings.resolved_database_url)

    async def export() -> None:
        wanted = audit.Filter(since=since.replace(tzinfo=UTC) if since else None)
        async with open_resources(settings) as resources:
            async with resources.write() as session:
                audit.record(session, None, Action.AUDIT_LOG_EXPORTED, None)
            async for lines in audit_logs.exported(resources, View(), wanted):
                sys.stdout.write(lines)

    asyncio.run(export())
