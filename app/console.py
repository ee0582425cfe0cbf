"""What the modules of the `hone` command share: its settings, its options, where it prints."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from app import environment
from app.errors import CannotDo
from app.observability import configure_logging, hide
from app.settings import Settings

# Where nobody looks, no line is folded to a width.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)

DataDirectory = Annotated[
    Path | None, typer.Option("--data", help="Data directory; HONE_DATA_DIRECTORY does the same.", show_default=False)
]


def settings_of(data: Path | None, **options: str | int | None) -> Settings:
    given = {"data_directory": data, **options}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = (": ".join([*_variable(fault["loc"]), fault["msg"]]) for fault in error.errors())
        raise CannotDo("a setting is wrong. " + "; ".join(wrong)) from error
    hide(settings.secrets | environment.secrets())
    configure_logging(settings.log_level)
    return settings


def _variable(place: tuple[int | str, ...]) -> list[str]:
    """The name of the setting at fault; none where several do not fit together."""
    return [".".join([f"HONE_{str(place[0]).upper()}", *(str(part) for part in place[1:])])] if place else []
