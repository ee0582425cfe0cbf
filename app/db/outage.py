"""Telling a database that is away, or busy beyond its deadline, from a statement that will never work."""

import asyncpg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# PostgreSQL's classes of states that pass: connection lost, deadlock or serialization failure, out of
# connections or memory, lock not available, stopped by an operator or a timeout. And a transaction left idle.
_PASSING_CLASSES = frozenset({"08", "40", "53", "55", "57"})
_PASSING_STATES = frozenset({"25P03"})


def is_outage(error: BaseException) -> bool:
    """Whether the same transaction may well succeed later."""
    if isinstance(error, PoolTimeout | ConnectionError | TimeoutError):
        return True
    # What befalls a new connection while SQLAlchemy makes it ready comes as the driver raises it.
    if isinstance(error, asyncpg.InterfaceError):
        return True
    if isinstance(error, asyncpg.PostgresError):
        return _passes(error)
    if not isinstance(error, DBAPIError):
        return False
    if error.orig is not None and isinstance(error.orig.__cause__, ValueError):
        return False  # a value that the driver cannot send, which it calls an interface error
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return True
    return _passes(error.orig)


def _passes(error: BaseException | None) -> bool:
    state = getattr(error, "sqlstate", None) or ""
    return state[:2] in _PASSING_CLASSES or state in _PASSING_STATES
