"""Registering a base model: pinned, measured, and its files put where every worker finds them."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import BaseModelFile
from app.errors import InvalidRequest
from app.resources import Resources
from app.services import base_models
from app.storage.base import ObjectCorrupt, ObjectMissing
from worker.data import base_layers, base_manifest, base_model_source, hub
from worker.data.base_manifest import BadBaseModel, BaseFile
from worker.data.base_model_source import BaseModelFacts

_WORTH_TELLING_BYTES = 10**9


async def run(
    resources: Resources, *, model_id: str, source: str, tell: Callable[[str], None] | None = None
) -> BaseModelFacts:
    """`source` is a directory on this machine, which goes into storage, or a hub repository, which each worker fetches.

    Raises BadBaseModel or InvalidRequest. Slow: everything is read, and a directory is uploaded; what an interrupted
    upload has put is not put again.
    """
    source = base_model_source.normalize_source(source)
    is_directory = source.startswith("/")
    directory, commit = (Path(source), None) if is_directory else await asyncio.to_thread(hub.fetch, source)
    content = await asyncio.to_thread(base_manifest.of_directory, directory)
    facts = base_model_source.inspect(directory, commit or base_manifest.digest(content))
    if commit is not None:
        await asyncio.to_thread(hub.verify, directory, content)
    layers = await asyncio.to_thread(base_layers.linear_layers, directory)
    async with resources.write() as session:
        rows = await base_models.announce(
            session, model_id=model_id, revision=facts.revision, content=content, stored=is_directory
        )
    if is_directory:
        await _upload(resources, directory, rows, tell or (lambda _: None))
    async with resources.write() as session:
        await _require_all(session, model_id, content, stored=is_directory)
        await base_models.add(session, model_id=model_id, source=source, facts=facts, linear_layers=layers)
    return facts


async def _upload(
    resources: Resources, directory: Path, rows: Sequence[BaseModelFile], tell: Callable[[str], None]
) -> None:
    for row in rows:
        assert row.storage_key is not None
        if row.is_stored and await _is_there(resources, row.storage_key, row.bytes):
            continue
        if row.bytes > _WORTH_TELLING_BYTES:
            tell(f"Storing {row.name}: {row.bytes / 1e9:.1f} GB")
        try:
            put = await resources.storage.put_known(row.storage_key, directory / row.name, sha256=row.sha256)
        except (ObjectCorrupt, FileNotFoundError) as error:
            raise BadBaseModel(f"{directory / row.name} changed while it was read; try again") from error
        if put.bytes != row.bytes:
            raise BadBaseModel(f"{directory / row.name} changed while it was read; try again")
        async with resources.write() as session:
            await base_models.stored(session, row)


async def _is_there(resources: Resources, key: str, num_bytes: int) -> bool:
    """An object that got lost is put again: adding a base model once more repairs it."""
    try:
        return (await resources.storage.stat(key)).bytes == num_bytes
    except ObjectMissing:
        return False


async def _require_all(session: AsyncSession, model_id: str, content: list[BaseFile], *, stored: bool) -> None:
    """Somebody else may have uploaded another directory under the same id meanwhile."""
    found = await base_models.files(session, model_id)
    is_same = {(row.name, row.sha256) for row in found} == {(file.name, file.sha256) for file in content}
    if not is_same or (stored and not all(row.is_stored for row in found)):
        raise InvalidRequest(f"Another base model is being registered as {model_id} at the same time.", param="id")
