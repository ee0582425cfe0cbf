"""`hone secrets`: the keys that secrets in the database are sealed with."""

import asyncio
import sys

import typer

from app import sealing, secret_upkeep
from app.console import DataDirectory, console, settings_of
from app.db import migrations
from app.errors import CannotDo
from app.resources import open_resources
from app.services.sealed_secrets import Count, Seal

secrets_group = typer.Typer(no_args_is_help=True, help="The keys that secrets in the database are sealed with.")


@secrets_group.command("new-key")
def new_secret_key() -> None:
    """Print a new key for HONE_SECRET_KEYS."""
    console.print(sealing.new_key())


@secrets_group.command("rotate")
def rotate_secrets(data: DataDirectory = None) -> None:
    """Seal all secrets with the first key, so that the others can be taken away. Servers and workers may run."""
    settings = settings_of(data)
    migrations.require_current(settings.resolved_database_url)

    async def rotate() -> Count:
        async with open_resources(settings) as resources:
            return await secret_upkeep.run(resources, Seal.WITH_THE_FIRST_KEY)

    try:
        count = asyncio.run(rotate())
    except sealing.CannotSeal as error:
        raise CannotDo("there is no key; set HONE_SECRET_KEYS.") from error
    console.print(f"Of {count.seen} webhook endpoints, {count.sealed} were sealed anew.")
    if count.unreadable:
        console.print(f"Those of {count.unreadable} cannot be read with any key, and stay as they are.", style="red")
        sys.exit(1)
