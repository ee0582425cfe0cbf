"""Whether an installation has kept its promises: to be asked at the end of whatever befell it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from app.settings import Settings
from tests.e2e.processes import PATIENCE, Installation
from tests.history import promises, snapshot
from tests.history.promises import Record
from tests.history.recorder import History
from tests.history.secrets import secrets_of


def assert_kept(installation: Installation, *, must_have_ended: bool = False) -> None:
    """By an installation that is quiet, whether or not its processes run. Not to be called where an event loop runs."""
    assert promises.violations(record(installation, must_have_ended=must_have_ended)) == []


def record(installation: Installation, *, must_have_ended: bool = False) -> Record:
    elsewhere = installation.data.parent.glob(f"{installation.data.name}-elsewhere-*")
    directories = [installation.data, *elsewhere]
    settings = installation.as_settings()
    return asyncio.run(_record(settings, installation.history, directories, must_have_ended=must_have_ended))


async def assert_kept_by_server(settings: Settings, history: History) -> None:
    """By a server that runs in this process, whose log is pytest's."""
    assert promises.violations(await _record(settings, history, [])) == []


async def _record(
    settings: Settings, history: History, directories: Sequence[Path], *, must_have_ended: bool = False
) -> Record:
    return Record(
        history.exchanges,
        await snapshot.take(settings, directories),
        history.secrets | secrets_of(settings),
        max_crashes=settings.max_crashes,
        must_have_ended=must_have_ended,
        patience=PATIENCE,
    )
