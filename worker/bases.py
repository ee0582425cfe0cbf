"""Base models on this machine: where a registered one lies, verified to be what was registered."""

import asyncio
import logging
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.db.models import BaseModel
from app.errors import Unavailable
from app.resources import Resources
from app.services import base_models
from worker.data import base_model_source
from worker.data.base_model_source import BadBaseModel

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 60.0
_MAX_REASON_CHARACTERS = 300


class BaseUnavailable(Exception):
    """This worker cannot get a base model; another may. The message says why."""


class Bases:
    """Remembers what it has verified, so that gigabytes are hashed once a worker, not once a job.

    `unavailable` maps the ids of bases that cannot be had here to the reason: their jobs are left to others.
    """

    def __init__(self) -> None:
        self.unavailable: dict[str, str] = {}
        self._verified: dict[str, tuple[str, tuple[tuple[str, int, int], ...]]] = {}
        self._lock = asyncio.Lock()

    async def directory(self, base: BaseModel) -> Path:
        """The directory of the base's registered revision. Raises BaseUnavailable when it cannot be had."""
        async with self._lock:
            try:
                directory = await asyncio.to_thread(self._locate, base.id, base.source, base.revision)
            except (BadBaseModel, OSError) as error:
                self.unavailable[base.id] = str(error)[:_MAX_REASON_CHARACTERS]
                raise BaseUnavailable(f"The worker cannot use the base model {base.id}") from error
        self.unavailable.pop(base.id, None)
        return directory

    async def retry_unavailable(self, resources: Resources) -> None:
        """Look each minute whether what could not be had can be had now."""
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            for base_id in list(self.unavailable):
                try:
                    async with resources.read() as session:
                        base = await base_models.get_one(session, base_id)
                    await self.directory(base)
                    _log.info("the base model %s can be used again", base_id)
                except (BaseUnavailable, Unavailable, SQLAlchemyError, OSError) as error:
                    _log.warning("the base model %s still cannot be used: %s", base_id, error.__cause__ or error)

    def _locate(self, base_id: str, source: str, revision: str) -> Path:
        known = self._verified.get(base_id)
        is_directory = Path(source).is_dir()
        if known and is_directory and known == (revision, base_model_source.signature(Path(source))):
            return Path(source)
        directory, found = base_model_source.fetch(source, revision)
        if found != revision:
            raise BadBaseModel(f"{source} has changed since it was registered; register it again under another id")
        self._verified[base_id] = (revision, base_model_source.signature(directory))
        return directory
