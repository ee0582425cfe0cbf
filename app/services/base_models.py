"""Base models that jobs may name. Only the operator registers them; no client ever names a path."""

import re
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import BaseModel
from app.db.queries import alone, server_rows
from app.errors import InvalidRequest
from app.ids import utc_now
from worker.data.base_model_source import BaseModelFacts

# What requests may name, and short enough for the names of the models that are made of it (256 characters).
_ID = re.compile(r"[A-Za-z0-9_:./\-]{1,90}")


async def find(session: AsyncSession, model_id: str) -> BaseModel | None:
    return await session.scalar(server_rows(BaseModel).where(BaseModel.id == model_id))


async def get_one(session: AsyncSession, model_id: str) -> BaseModel:
    """A base model that a job or an adapter names, which is therefore registered."""
    return (await session.execute(server_rows(BaseModel).where(BaseModel.id == model_id))).scalar_one()


async def search(session: AsyncSession) -> Sequence[BaseModel]:
    return list(await session.scalars(server_rows(BaseModel).order_by(BaseModel.id)))


async def add(session: AsyncSession, *, model_id: str, source: str, facts: BaseModelFacts) -> BaseModel:
    """Register a base model, or find it as it was registered. InvalidRequest if the id means another one."""
    if model_id.endswith("/adapter"):
        raise InvalidRequest(f"{model_id} ends as the paths of adapters do; choose another id.", param="id")
    if not _ID.fullmatch(model_id):
        sentence = "An id has up to 90 letters, digits, hyphens, underscores, full stops, colons and slashes."
        raise InvalidRequest(sentence, param="id")
    await alone(session, f"base model {model_id}")
    known = await find(session, model_id)
    if known is not None:
        if known.revision == facts.revision and known.source == source:
            return known
        raise InvalidRequest(f"{model_id} is registered already, with another source or revision.", param="id")
    base = BaseModel(
        id=model_id,
        source=source,
        revision=facts.revision,
        num_parameters=facts.num_parameters,
        context_tokens=facts.context_tokens,
        created_at=utc_now(),
    )
    session.add(base)
    return base
