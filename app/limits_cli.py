"""`hone limits`: what projects may use."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from app.console import DataDirectory, console, settings_of
from app.db import migrations
from app.errors import InvalidRequest
from app.resources import open_resources
from app.schemas.limits import LimitsChange, LimitsRead
from app.services import keys, projects, quotas

limits_group = typer.Typer(no_args_is_help=True, help="What projects may use.")
InProject = Annotated[str | None, typer.Option("--project", help="A name or an id.", show_default="the default one")]


@limits_group.command("show")
def show(project: InProject = None, data: DataDirectory = None) -> None:
    """Show what a project may use, and what it uses now."""
    _print(_run(data, project, {}))


@limits_group.command("set")
def change(
    limits: Annotated[list[str], typer.Argument(help="Such as files=100 or stored_bytes=default.")],
    project: InProject = None,
    data: DataDirectory = None,
) -> None:
    """Set some of a project's limits; they hold at once. `default` takes the server's default back."""
    _print(_run(data, project, _changes(limits)))


def _run(data: Path | None, name: str | None, changes: dict[str, int | None]) -> LimitsRead:
    settings = settings_of(data)
    migrations.require_current(settings.resolved_database_url)

    async def run() -> LimitsRead:
        async with open_resources(settings) as resources, resources.write() as session:
            project = await keys.default_project(session) if name is None else await projects.named(session, name)
            if changes:
                await quotas.change(session, project.id, changes)
            return await quotas.report(session, project.id, settings)

    return asyncio.run(run())


def _print(read: LimitsRead) -> None:
    table = Table("limit", "value", "from", "used", "left", box=None)
    for name in quotas.NAMES:
        one = getattr(read, name)
        source = "server" if one.override is None else "project"
        table.add_row(name, "none" if one.value is None else str(one.value), source, _text(one.used), _text(one.left))
    console.print(table)


def _changes(pairs: list[str]) -> dict[str, int | None]:
    """Raises InvalidRequest."""
    found: dict[str, int | None] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in quotas.NAMES or not (value == "default" or (value.isascii() and value.isdecimal())):
            expected = f"NAME=NUMBER or NAME=default, of {', '.join(quotas.NAMES)}"
            raise InvalidRequest(f"Expected {expected}; got '{pair}'.")
        found[name] = None if value == "default" else int(value)
    try:
        return LimitsChange.model_validate(found).model_dump(exclude_unset=True)
    except ValueError as error:
        raise InvalidRequest("A number is out of range; requests_per_minute is at least 1.") from error


def _text(value: int | None) -> str:
    return "" if value is None else str(value)
