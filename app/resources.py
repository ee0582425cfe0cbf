"""Everything that is opened once and closed at the end: database, storage, queue."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from app import sealing
from app.db import after_commit
from app.db.engine import Database
from app.queue.base import Queue
from app.queue.memory import MemoryQueue
from app.sealing import Sealer
from app.settings import Settings
from app.storage.base import Storage, StorageRefused
from app.storage.local import LocalStorage

_log = logging.getLogger(__name__)
_AFTER_COMMIT_SECONDS = 1.0


@dataclass(frozen=True)
class Resources:
    settings: Settings
    database: Database
    storage: Storage
    queue: Queue
    sealer: Sealer

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session for reading."""
        return self.database.read()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session that commits at the end of the block; what the block asked for after its commit follows.

        A crash or a fault between the two is harmless: slots look for work each second anyway, and an
        object that no row refers to is only space.
        """
        async with self.database.write() as session:
            yield session
        for pool in after_commit.wakes(session):
            await _quietly("wake", self.queue.wake(pool))
        for key in after_commit.doomed_objects(session):
            await _quietly("delete", self.storage.delete(key))


async def _quietly(what: str, action: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(_AFTER_COMMIT_SECONDS):
            await action
    except (OSError, TimeoutError):
        _log.warning("%s after a commit failed", what, exc_info=True)


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    _open_data(settings.data)
    sealer = await asyncio.to_thread(open_sealer, settings)
    async with open_storage(settings) as storage, open_queue(settings) as queue:
        database = Database(
            settings.resolved_database_url,
            timeout_seconds=settings.database_timeout_seconds,
            max_connections=settings.database_connections,
        )
        try:
            yield Resources(settings, database, storage, queue, sealer)
        finally:
            await database.close()


def _open_data(directory: Path) -> None:
    """Nobody else's to read, also where it was there before; one that another user owns stays as they have it."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.stat().st_uid == os.geteuid():
        with suppress(OSError):  # a file system that is read-only, or has no modes
            directory.chmod(0o700)


def open_sealer(settings: Settings) -> Sealer:
    """Raises BadKey. Beside a SQLite file lies a key, made at the first start; several machines must be given one."""
    keys = [key.get_secret_value() for key in settings.secret_keys]
    if settings.key_file is not None:
        keys += sealing.keys_in(settings.key_file, make=not keys)
    return Sealer(keys)


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[Queue]:
    if settings.redis_url is None:
        yield MemoryQueue()
        return
    from app.queue.redis import RedisQueue  # here, so that who does without Redis need not load its client

    async with RedisQueue(settings.redis_url) as queue:
        yield queue


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncIterator[Storage]:
    """Opening connects to nothing. Raises StorageRefused when the settings cannot be right."""
    storage = _storage(settings)
    try:
        yield storage
    finally:
        await storage.close()


def _storage(settings: Settings) -> Storage:
    if settings.s3_bucket is None:
        return LocalStorage(settings.data / "objects")
    try:
        from app.storage.s3 import S3Options, S3Storage  # boto3 is an extra, and heavy
    except ModuleNotFoundError as error:
        raise StorageRefused("boto3 is not installed; install 'hone[s3]'") from error
    secret = settings.s3_secret_access_key
    return S3Storage(
        S3Options(
            bucket=settings.s3_bucket,
            endpoint_url=settings.s3_endpoint_url,
            region=settings.s3_region,
            access_key_id=settings.s3_access_key_id,
            secret_access_key=secret.get_secret_value() if secret else None,
            prefix=settings.s3_prefix,
            public_url=settings.s3_public_url,
            timeout_seconds=settings.s3_timeout_seconds,
        )
    )
