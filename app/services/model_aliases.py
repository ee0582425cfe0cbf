"""Other names of base models: code that names another provider's model then runs on one of the operator's."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.audit_models import Action
from app.db.models import BaseModel, ModelAlias
from app.db.queries import alone, server_rows
from app.errors import InvalidRequest, NotFound
from app.ids import utc_now
from app.services import audit, base_models, lookup


async def find(session: AsyncSession, name: str) -> ModelAlias | None:
    return await lookup.find(session, server_rows(ModelAlias), ModelAlias.id, name)


async def search(session: AsyncSession) -> Sequence[ModelAlias]:
    return list(await session.scalars(server_rows(ModelAlias).order_by(ModelAlias.id)))


async def base_of(session: AsyncSession, name: str) -> BaseModel | None:
    """The base model of that name, or the one that it is an alias of."""
    if (base := await base_models.find(session, name)) is not None:
        return base
    alias = await find(session, name)
    return await base_models.get_one(session, alias.base_model_id) if alias is not None else None


async def put(session: AsyncSession, *, name: str, base_id: str) -> ModelAlias:
    """Make an alias, or let it stand for another base model from now on. Raises InvalidRequest."""
    base_models.check_id(name)
    if name.startswith("ft:"):
        raise InvalidRequest("Names that begin with 'ft:' are those of fine-tuned models.", param="id")
    await alone(session, base_models.PURPOSE)
    base = await base_models.require(session, base_id, param="base_model")
    if await base_models.find(session, name) is not None:
        raise InvalidRequest(f"{name} is a base model itself.", param="id")
    alias = await find(session, name)
    if alias is None:
        alias = ModelAlias(id=name, base_model_id=base.id, created_at=utc_now())
        session.add(alias)
    alias.base_model_id = base.id
    audit.record(session, None, Action.ALIAS_CREATED, alias.id, base_model=base.id)
    await session.flush()
    return alias


async def remove(session: AsyncSession, *, name: str) -> ModelAlias:
    await alone(session, base_models.PURPOSE)
    alias = await find(session, name)
    if alias is None:
        raise NotFound(f"There is no alias '{lookup.shown(name)}'.", param="id", code="alias_not_found")
    await session.delete(alias)
    audit.record(session, None, Action.ALIAS_DELETED, alias.id)
    return alias
