"""Base models on this machine: where a registered one lies, verified to be what was registered."""

import asyncio
from pathlib import Path

from app.db.models import BaseModel
from worker.contract.errors import Blame, TrainError
from worker.data import base_model_source
from worker.data.base_model_source import BadBaseModel


class Bases:
    """Remembers what it has verified, so that gigabytes are hashed once a worker, not once a job."""

    def __init__(self) -> None:
        self._verified: dict[str, tuple[str, tuple[tuple[str, int, int], ...]]] = {}
        self._lock = asyncio.Lock()

    async def directory(self, base: BaseModel) -> Path:
        """The directory of the base's registered revision. Raises TrainError when it cannot be had."""
        async with self._lock:
            try:
                return await asyncio.to_thread(self._locate, base.id, base.source, base.revision)
            except (BadBaseModel, OSError) as error:
                message = f"The base model {base.id} cannot be used on this worker: {error}"
                raise TrainError("base_model_unavailable", message, param="model", blame=Blame.INTERNAL) from error

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
