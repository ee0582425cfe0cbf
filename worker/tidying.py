"""Clearing storage of what belongs to nothing: any worker does it beside its jobs, now and then."""

import asyncio
import logging
import random
import shutil
import time
from datetime import timedelta
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.errors import Unavailable
from app.resources import Resources
from app.services import base_models, orphans
from app.storage import keys

_log = logging.getLogger(__name__)
_PAUSE_SECONDS = 3600.0


async def run(resources: Resources) -> None:
    """Clear storage of what belongs to nothing, each hour or so. Workers may meet: removing twice is no error."""
    age = timedelta(seconds=resources.settings.orphan_seconds)
    while True:
        await asyncio.sleep(_PAUSE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - so that workers rarely meet
        try:
            await once(resources, older_than=age)
        except (Unavailable, SQLAlchemyError, OSError):
            _log.warning("storage could not be tidied; it is tried again in an hour", exc_info=True)


async def once(resources: Resources, *, older_than: timedelta) -> None:
    unfinished = await resources.storage.remove_unfinished(older_than=older_than)
    async with resources.write() as session:
        await base_models.forget_abandoned(session, older_than=older_than)
    removed = await remove_orphans(resources, older_than=older_than)
    scratch = await asyncio.to_thread(_remove_scratch, resources.settings.data, older_than)
    if unfinished or removed or scratch:
        _log.info("removed %d orphans, %d unfinished puts, %d scratch directories", removed, unfinished, scratch)


async def remove_orphans(resources: Resources, *, older_than: timedelta) -> int:
    """Remove objects of that age that nothing names; returns how many.

    An object is put first and named by a row later, so only its age, by the storage's clock, tells that this will
    not come any more. What no row names any longer is never named again: several workers may do this at a time.
    """
    removed = 0
    for prefix in keys.SWEPT:
        async for page in resources.storage.list_objects(prefix):
            old = {info.key for info in page if info.age > older_than}
            if not old:
                continue
            async with resources.read() as session:
                unnamed = old - await orphans.needed(session, old)
            for key in unnamed:
                await resources.storage.delete(key)
            removed += len(unnamed)
    return removed


def _remove_scratch(data: Path, older_than: timedelta) -> int:
    """What an import of an adapter leaves that is killed."""
    old = [path for path in data.glob("import-*") if time.time() - path.stat().st_mtime > older_than.total_seconds()]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
    return len(old)
