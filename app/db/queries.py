"""The only ways to begin a query: by project, by lease (app.services.leases and scheduling; webhook_deliveries has its
own), or on a server table.

`tests/unit/test_query_doors.py` finds any other.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app.auth import Principal
from app.db.base import Base, JobRow, ProjectRow
from app.db.models import SERVER_TABLES

Row = TypeVar("Row", bound=Base)
TenantRow = TypeVar("TenantRow", bound=ProjectRow)
RowOfJob = TypeVar("RowOfJob", bound=JobRow)


def scoped(model: type[TenantRow], principal: Principal) -> Select[TenantRow]:
    """Rows of the caller's project and no other."""
    return select(model).where(model.project_id == principal.project_id)


def server_rows(model: type[Row]) -> Select[Row]:
    """Rows that belong to the installation."""
    if model not in SERVER_TABLES:
        raise TypeError(f"{model.__name__} is a tenant table: use scoped()")
    return select(model)


def of_project(model: type[TenantRow], project_id: str) -> Select[TenantRow]:
    """A worker's rows of the project whose job it holds a lease on."""
    return select(model).where(model.project_id == project_id)


def of_job(model: type[RowOfJob], job_id: str) -> Select[RowOfJob]:
    """A worker's rows of the job that it holds a lease on."""
    return select(model).where(model.job_id == job_id)


def naming(column: ColumnElement[str] | InstrumentedAttribute[Any], keys: Collection[str]) -> Select[str]:
    """Those of the storage keys that the column names, in whatever project: for sweeps, which show nobody a row."""
    return select(column).where(column.in_(keys))


async def alone(session: AsyncSession, purpose: str) -> None:
    """Until the end of its transaction this session is the only one for the purpose: others wait here.

    For what is looked for and then made, where there is no row yet to lock. SQLite has one writer anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(purpose, 0))))


async def database_now(session: AsyncSession) -> datetime:
    """The database's clock, which is the one that leases are measured by: workers' clocks may differ."""
    if session.get_bind().dialect.name == "sqlite":
        text: Any = await session.scalar(select(literal_column("strftime('%Y-%m-%dT%H:%M:%f', 'now')")))
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    return (await session.execute(select(func.clock_timestamp()))).scalar_one()
