"""Clearing away what has expired or belongs to nothing: any worker does it beside its jobs, now and then."""

import asyncio
import logging
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.db.queries import database_now
from app.errors import Unavailable
from app.resources import Resources
from app.services import audit, base_models, files, metering, orphans, uploads, usage
from app.storage import keys

_log = logging.getLogger(__name__)
_EXPIRY_PAUSE_SECONDS = 300.0
_PAUSE_SECONDS = 3600.0
_BOOKS_PAUSE_SECONDS = 600.0


async def run(resources: Resources) -> None:
    """Remove what has expired every few minutes, and what belongs to nothing each hour or so.

    Workers may meet: removing twice is no error.
    """
    age = timedelta(seconds=resources.settings.orphan_seconds)
    async with asyncio.TaskGroup() as sweeps:
        sweeps.create_task(_again_and_again(partial(keep_books, resources), _BOOKS_PAUSE_SECONDS))
        sweeps.create_task(_again_and_again(partial(remove_expired, resources), _EXPIRY_PAUSE_SECONDS))
        sweeps.create_task(_again_and_again(partial(once, resources, older_than=age), _PAUSE_SECONDS))


async def _again_and_again(sweep: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
    while True:
        await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - so that workers rarely meet
        try:
            await sweep()
        except (Unavailable, SQLAlchemyError, OSError):
            _log.warning("storage could not be tidied; it is tried again later", exc_info=True)


async def remove_expired(resources: Resources) -> None:
    """Files whose time has come, and uploads that nobody completed, with the parts of all that have ended."""
    async with resources.read() as session:
        now = await database_now(session)  # which all workers agree on
    last: str | None = ""
    while last is not None:
        async with resources.write() as session:
            last = await files.remove_expired(session, now=now, after=last)
    is_done = False
    while not is_done:
        async with resources.write() as session:
            is_done = not await uploads.expire(session, now=now)
    while True:
        async with resources.read() as session:
            parts = await uploads.needless_parts(session, now=now)
        if not parts:
            break
        for part in parts:
            await resources.storage.delete(part.storage_key)
        async with resources.write() as session:
            await uploads.forget_parts(session, parts)
    async with resources.write() as session:
        await uploads.forget_old(session, now=now)


async def keep_books(resources: Resources) -> None:
    """What is done once a day, by whichever worker comes first."""
    async with resources.write() as session:
        recorded = await usage.record_stored_bytes(session)
    if recorded:
        _log.info("the bytes that %d projects store were recorded for today", recorded)
    if (days := resources.settings.audit_retention_days) is not None:
        await prune_audit_log(resources, days=days)


async def prune_audit_log(resources: Resources, *, days: int) -> None:
    async with resources.read() as session:
        horizon = metering.day_of(await database_now(session)) - timedelta(days=days)
    has_more = True
    while has_more:
        async with resources.write() as session:
            has_more = await audit.remove_before(session, horizon) > 0


async def once(resources: Resources, *, older_than: timedelta) -> None:
    unfinished = await resources.storage.remove_unfinished(older_than=older_than)
    async with resources.write() as session:
        await base_models.forget_abandoned(session, older_than=older_than)
    removed = await remove_orphans(resources, older_than=older_than)
    scratch = await asyncio.to_thread(_remove_scratch, resources.settings.data, older_than)
    if unfinished or removed or scratch:
        _log.info("removed %d orphans, %d unfinished puts, %d scratch directories", removed, unfinished, scratch)


async def remove_orphans(resources: Resources, *, older_than: timedelta) -> int:
    """Remove objects of ours of that age that nothing names; returns how many.

    An object is put first and named by a row later, so only its age, by the storage's clock, tells that this will
    not come any more. What no row names any longer is never named again: several workers may do this at a time.
    """
    removed = 0
    for prefix in keys.SWEPT:
        async for page in resources.storage.list_objects(prefix):
            old = {info.key for info in page if info.age > older_than and keys.is_ours(info.key)}
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
