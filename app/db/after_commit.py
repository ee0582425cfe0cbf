"""What a transaction asks to happen once it has committed. `app.resources` carries it out."""

from sqlalchemy.ext.asyncio import AsyncSession

_WAKES, _DOOMED = "wakes", "doomed_objects"


def wake(session: AsyncSession, pool: str) -> None:
    """Wake the slots of a pool: there may be work for them."""
    session.info.setdefault(_WAKES, set()).add(pool)


def delete_object(session: AsyncSession, storage_key: str) -> None:
    """Remove an object from storage, now that no row refers to it."""
    session.info.setdefault(_DOOMED, set()).add(storage_key)


def wakes(session: AsyncSession) -> set[str]:
    return session.info.get(_WAKES, set())


def doomed_objects(session: AsyncSession) -> set[str]:
    return session.info.get(_DOOMED, set())
