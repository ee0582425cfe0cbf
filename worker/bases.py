"""Base models on this machine: fetched from storage or the hub, verified by hash, kept in a cache.

The trainer reads a directory and knows nothing of where it came from. Validation needs no weights, and fetches none.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.db.models import BaseModel
from app.errors import Unavailable
from app.resources import Resources
from app.services import base_models, waiting
from app.storage.base import ObjectCorrupt, ObjectMissing, StorageUnavailable
from worker import base_fetch
from worker.base_cache import BaseCache, Entry, Lock, NoRoom
from worker.data import base_layers, base_manifest, base_model_source
from worker.data.base_manifest import BadBaseModel, BaseFile

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 60.0
_MAX_REASON_CHARACTERS = 300


class BaseUnavailable(Exception):
    """This worker cannot get a base model; another may. The message says which, the cause why."""


class Bases:
    """The worker's way to base models, and its memory of those that it cannot get."""

    def __init__(self, resources: Resources) -> None:
        settings = resources.settings
        self._resources = resources
        self._cache = BaseCache(settings.data / "bases", settings.base_cache_bytes)
        self._verified: dict[str, tuple[str, tuple[tuple[str, int, int], ...]]] = {}
        self._missing: dict[bool, dict[str, str]] = {True: {}, False: {}}  # by whether weights were wanted

    @property
    def unavailable(self) -> dict[str, str]:
        """Why base models cannot be had here, by id."""
        return self._missing[False] | self._missing[True]

    def excluded(self, *, weights: bool = True) -> Collection[str]:
        """The ids of those whose jobs this worker leaves to others: to train, or (without weights) to check files."""
        return frozenset(self._missing[weights])

    @asynccontextmanager
    async def use(self, base: BaseModel, *, weights: bool = True) -> AsyncIterator[Path]:
        """A directory with the base's registered revision, which stays as it is until the end of the block.

        Without `weights` it holds configuration, tokenizer and chat template. May take as long as a download does, and
        may be cancelled. Raises BaseUnavailable, or StorageUnavailable when storage is away, which is not the base's
        fault.
        """
        directory, lock = await self._get(base, weights)
        try:
            yield directory
        finally:
            if lock is not None:
                lock.release()

    async def linear_layers(self, base: BaseModel) -> Mapping[str, tuple[int, int]]:
        """As recorded; of a base that was registered before they were, read from its weights. Raises as `use` does."""
        async with self._resources.read() as session:
            layers = await base_models.linear_layers(session, base.id)
        if layers is not None:
            return layers
        async with self.use(base) as directory:
            return await asyncio.to_thread(base_layers.linear_layers, directory)

    async def retry_unavailable(self) -> None:
        """Look each minute whether what could not be had can be had now."""
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            for weights, missing in self._missing.items():
                for base_id in list(missing):
                    await self._retry(base_id, weights)

    async def _retry(self, base_id: str, weights: bool) -> None:
        try:
            async with self._resources.read() as session:
                base = await base_models.find(session, base_id)
            if base is None:
                self._missing[weights].pop(base_id, None)
                return
            async with self.use(base, weights=weights):
                _log.info("the base model %s can be used again", base_id)
        except BaseUnavailable as error:
            _log.warning("the base model %s still cannot be used: %s", base_id, error.__cause__)
            await self._tell(base_id)
        except (Unavailable, SQLAlchemyError, OSError):
            _log.warning("the base model %s could not be looked for again", base_id, exc_info=True)

    async def _tell(self, base_id: str) -> None:
        """Jobs that came since then wait without having been claimed, and nobody has told them why."""
        with suppress(Unavailable, SQLAlchemyError, OSError):
            async with self._resources.write() as session:
                seconds = self._resources.settings.lease_seconds
                await waiting.tell(session, base_id=base_id, silent_seconds=seconds)

    async def _get(self, base: BaseModel, weights: bool) -> tuple[Path, Lock | None]:
        missing = self._missing[weights]
        try:
            got = await self._find(base, weights)
        except StorageUnavailable:
            raise
        except (BadBaseModel, NoRoom, ObjectCorrupt, ObjectMissing, OSError) as error:
            missing[base.id] = str(error)[:_MAX_REASON_CHARACTERS]
            raise BaseUnavailable(f"The worker cannot use the base model {base.id}") from error
        missing.pop(base.id, None)
        return got

    async def _find(self, base: BaseModel, weights: bool) -> tuple[Path, Lock | None]:
        async with self._resources.read() as session:
            rows = await base_models.files(session, base.id)
        if not rows:
            return await asyncio.to_thread(self._locate, base.id, base.source, base.revision), None
        places = {row.name: row.storage_key for row in rows}
        content = base_manifest.checked(BaseFile(row.name, row.bytes, row.sha256) for row in rows)
        wanted = [file for file in content if weights or not file.is_weights]
        entry = self._cache.entry(base_manifest.digest(wanted))
        while True:
            lock = await entry.lock(alone=False)
            try:
                if await asyncio.to_thread(entry.is_whole):
                    entry.touch()
                    return entry.files, lock
            except BaseException:
                lock.release()
                raise
            lock.release()
            lock = await entry.lock(alone=True)
            try:
                if not await asyncio.to_thread(entry.is_whole):  # or else another has fetched it meanwhile
                    await self._fetch(entry, base, wanted, places)
            finally:
                lock.release()

    async def _fetch(
        self, entry: Entry, base: BaseModel, wanted: Sequence[BaseFile], places: dict[str, str | None]
    ) -> None:
        storage = self._resources.storage
        size = sum(file.bytes for file in wanted)
        paths = [storage.local_path(place) if (place := places[file.name]) else None for file in wanted]
        is_here = await asyncio.to_thread(base_fetch.can_link, paths, entry.root)
        await base_fetch.to_its_end(self._cache.make_room, entry, 0 if is_here else size)
        _log.info("fetching the base model %s: %.3f GB", base.id, size / 1e9)
        if any(place is None for place in places.values()):
            await base_fetch.from_hub(base.source, base.revision, wanted, entry.partial)
        else:
            for file in wanted:
                await base_fetch.from_storage(storage, str(places[file.name]), file, entry.partial)
        await base_fetch.to_its_end(entry.complete, {file.name for file in wanted})
        _log.info("the base model %s is here, verified", base.id)

    def _locate(self, base_id: str, source: str, revision: str) -> Path:
        """Of a base that was registered before its files were recorded: read where it lies, hashed once a worker."""
        known = self._verified.get(base_id)
        is_directory = Path(source).is_dir()
        if known and is_directory and known == (revision, base_model_source.signature(Path(source))):
            return Path(source)
        directory, found = base_model_source.fetch(source, revision)
        if found != revision:
            raise BadBaseModel(f"{source} has changed since it was registered; register it again under another id")
        self._verified[base_id] = (revision, base_model_source.signature(directory))
        return directory
