"""Base models that jobs may name. Only the operator registers them; no client ever names a path."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.audit_models import Action
from app.db.models import BaseModel, BaseModelFile, ModelAlias
from app.db.queries import alone, database_now, server_rows
from app.errors import InvalidRequest
from app.ids import utc_now
from app.services import audit, lookup
from app.storage import keys
from worker.data.base_manifest import BaseFile
from worker.data.base_model_source import BaseModelFacts

# What requests may name, and short enough for the names of the models that are made of it (256 characters).
_ID = re.compile(r"[A-Za-z0-9_:./\-]{1,90}")
PURPOSE = "base models"  # one lock for all: files are shared between them, and names with aliases


def check_id(model_id: str) -> None:
    """Raises InvalidRequest for what cannot be the name of a base model, nor another name of one."""
    if model_id.endswith("/adapter"):
        raise InvalidRequest(f"{model_id} ends as the paths of adapters do; choose another id.", param="id")
    if not _ID.fullmatch(model_id):
        sentence = "An id has up to 90 letters, digits, hyphens, underscores, full stops, colons and slashes."
        raise InvalidRequest(sentence, param="id")


async def find(session: AsyncSession, model_id: str) -> BaseModel | None:
    return await lookup.find(session, server_rows(BaseModel), BaseModel.id, model_id)


async def require(session: AsyncSession, model_id: str, *, param: str | None = None) -> BaseModel:
    """For the operator. Raises InvalidRequest if there is none of this name."""
    base = await find(session, model_id)
    if base is None:
        sentence = f"{lookup.shown(model_id)} is not a registered base model; `hone models list` shows them."
        raise InvalidRequest(sentence, param=param)
    return base


async def get_one(session: AsyncSession, model_id: str) -> BaseModel:
    """A base model that a job or an adapter names, which is therefore registered."""
    return (await session.execute(server_rows(BaseModel).where(BaseModel.id == model_id))).scalar_one()


async def search(session: AsyncSession) -> Sequence[BaseModel]:
    return list(await session.scalars(server_rows(BaseModel).order_by(BaseModel.id)))


async def files(session: AsyncSession, model_id: str) -> Sequence[BaseModelFile]:
    """In no order; empty for a base model that was registered by a Hone that did not record them."""
    return list(await session.scalars(server_rows(BaseModelFile).where(BaseModelFile.base_model_id == model_id)))


async def linear_layers(session: AsyncSession, model_id: str) -> Mapping[str, tuple[int, int]] | None:
    """Outputs and inputs of the base model's linear layers by module path; None where they were not recorded."""
    query = server_rows(BaseModel).where(BaseModel.id == model_id).with_only_columns(BaseModel.linear_layers)
    found: dict[str, Any] | None = await session.scalar(query)
    return {path: (sizes[0], sizes[1]) for path, sizes in found.items()} if found is not None else None


async def announce(
    session: AsyncSession, *, model_id: str, revision: str, content: Sequence[BaseFile], stored: bool
) -> Sequence[BaseModelFile]:
    """Record the files that a base model will have, before any of them is put into storage (if they are `stored`).

    Files that an interrupted upload or another base model has in storage are there already. Raises InvalidRequest.
    """
    check_id(model_id)
    await alone(session, PURPOSE)
    await _known(session, model_id, revision)
    now = await database_now(session)
    rows = {row.name: row for row in await files(session, model_id)}
    for row in rows.values():
        if (row.name, row.bytes, row.sha256) not in {(file.name, file.bytes, file.sha256) for file in content}:
            await session.delete(row)  # of another upload under this id, which was given up
    await session.flush()
    for file in content:
        row = rows.get(file.name)
        if row is None or row.sha256 != file.sha256:
            row = BaseModelFile(base_model_id=model_id, **vars(file), is_stored=False)
            session.add(row)
        row.touched_at = now
        if stored and row.storage_key is None:
            same = await session.scalar(
                server_rows(BaseModelFile).where(BaseModelFile.sha256 == file.sha256, BaseModelFile.is_stored).limit(1)
            )
            row.is_stored = same is not None
            row.storage_key = same.storage_key if same is not None else keys.base_model_file()
    await session.flush()
    return await files(session, model_id)


async def stored(session: AsyncSession, row: BaseModelFile) -> None:
    """The file's object is complete. Keeps the rows of the upload from being taken for abandoned."""
    now = await database_now(session)
    for other in await files(session, row.base_model_id):
        other.touched_at = now
        if (other.name, other.storage_key) == (row.name, row.storage_key):
            other.is_stored = True


async def add(
    session: AsyncSession,
    *,
    model_id: str,
    source: str,
    facts: BaseModelFacts,
    linear_layers: Mapping[str, tuple[int, int]] | None = None,
) -> BaseModel:
    """Register a base model, or find it as it was registered. InvalidRequest if the id means another one."""
    check_id(model_id)
    await alone(session, PURPOSE)
    layers = {path: list(sizes) for path, sizes in linear_layers.items()} if linear_layers is not None else None
    known = await _known(session, model_id, facts.revision)
    if known is not None:
        if layers is not None:
            known.linear_layers = layers
        return known
    base = BaseModel(
        id=model_id,
        source=source,
        revision=facts.revision,
        num_parameters=facts.num_parameters,
        context_tokens=facts.context_tokens,
        linear_layers=layers,
        created_at=utc_now(),
    )
    session.add(base)
    audit.record(session, None, Action.BASE_MODEL_CREATED, base.id, revision=base.revision)
    return base


async def forget_abandoned(session: AsyncSession, *, older_than: timedelta) -> int:
    """Drop the files of uploads that never became a base model; their objects then belong to nothing."""
    await alone(session, PURPOSE)
    before = await database_now(session) - older_than
    registered = server_rows(BaseModel).with_only_columns(BaseModel.id)
    query = server_rows(BaseModelFile).where(
        BaseModelFile.touched_at < before, BaseModelFile.base_model_id.not_in(registered)
    )
    abandoned = list(await session.scalars(query))
    for row in abandoned:
        await session.delete(row)
    return len(abandoned)


async def _known(session: AsyncSession, model_id: str, revision: str) -> BaseModel | None:
    known = await find(session, model_id)
    if known is not None and known.revision != revision:
        raise InvalidRequest(f"{model_id} is registered already, with another source or revision.", param="id")
    alias = await session.scalar(server_rows(ModelAlias).where(ModelAlias.id == model_id))
    if alias is not None:
        sentence = f"{model_id} is an alias of {alias.base_model_id}; `hone models unalias {model_id}` removes it."
        raise InvalidRequest(sentence, param="id")
    return known
