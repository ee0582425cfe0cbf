"""The only ways to begin a query: by project, by lease (app.services.leases and scheduling; webhook_deliveries and
grader_runs have their own; app.db.holdings has sums), or on a server table.

`tests/unit/test_query_doors.py` finds any other.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, ScalarSelect, Select, exists, func, literal_column, or_, select, text, union
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app.auth import Principal
from app.db import drivers
from app.db.audit_models import AuditEntry
from app.db.base import Base, JobRow, ProjectRow
from app.db.models import (
    SERVER_TABLES,
    Checkpoint,
    CheckpointPermission,
    File,
    FineTunedModel,
    Job,
    LogSegment,
    Project,
    UploadPart,
)
from app.db.tenancy_models import AdminApiKey, User
from app.db.usage_models import UsageRecord

Row = TypeVar("Row", bound=Base)
TenantRow = TypeVar("TenantRow", bound=ProjectRow)
RowOfJob = TypeVar("RowOfJob", bound=JobRow)
OrganizationRow = TypeVar("OrganizationRow", Project, User, AdminApiKey)
Overseen = TypeVar("Overseen", AuditEntry, UsageRecord, Job)


@dataclass(frozen=True)
class View:
    """What somebody who looks at usage or the audit log sees: a project, an organization's, or everybody's.

    `app.services.oversight` decides who gets which.
    """

    organization_id: str | None = None
    project_id: str | None = None


def scoped(model: type[TenantRow], principal: Principal) -> Select[TenantRow]:
    """Rows of the caller's project and no other."""
    return select(model).where(model.project_id == principal.project_id)


def readable_models(principal: Principal) -> Select[FineTunedModel]:
    """The models of the caller's project, and those that others share with it."""
    own = FineTunedModel.project_id == principal.project_id
    return select(FineTunedModel).where(or_(own, _is_shared(FineTunedModel, FineTunedModel.id, principal)))


def readable_checkpoints(principal: Principal) -> Select[Checkpoint]:
    """The checkpoints of the caller's project, and those that others share with it."""
    own = Checkpoint.project_id == principal.project_id
    return select(Checkpoint).where(or_(own, _is_shared(Checkpoint, Checkpoint.model_name, principal)))


def server_rows(model: type[Row]) -> Select[Row]:
    """Rows that belong to the installation."""
    if model not in SERVER_TABLES:
        raise TypeError(f"{model.__name__} is a tenant table: use scoped()")
    return select(model)


def of_project(model: type[TenantRow], project_id: str) -> Select[TenantRow]:
    """Rows of the project that owns what is in hand already: a job by its lease, a model that may be read."""
    return select(model).where(model.project_id == project_id)


def of_organization(model: type[OrganizationRow], principal: Principal) -> Select[OrganizationRow]:
    """Projects, users and admin keys of the caller's organization and of no other."""
    return select(model).where(model.organization_id == principal.organization_id)


def of_job(model: type[RowOfJob], job_id: str) -> Select[RowOfJob]:
    """A worker's rows of the job that it holds a lease on."""
    return select(model).where(model.job_id == job_id)


def naming(column: ColumnElement[str] | InstrumentedAttribute[Any], keys: Collection[str]) -> Select[str]:
    """Those of the storage keys that the column names, in whatever project: for sweeps, which show nobody a row."""
    return select(column).where(column.in_(keys))


def due(
    column: InstrumentedAttribute[datetime] | InstrumentedAttribute[datetime | None], moment: datetime
) -> Select[Any]:
    """Rows of the column's table whose time has come at `moment`, in whatever project: for sweeps, as above."""
    return select(column.class_).where(column <= moment)


def overseen(model: type[Overseen], view: View) -> Select[Overseen]:
    """The rows of usage, of jobs or of the audit log that a view shows."""
    query = select(model)
    if view.organization_id is not None:
        query = query.where(model.organization_id == view.organization_id)
    if view.project_id is not None:
        query = query.where(model.project_id == view.project_id)
    return query


def organization_of(project_id: str) -> ScalarSelect[str]:
    return select(Project.organization_id).where(Project.id == project_id).scalar_subquery()


def bytes_held() -> Select[str, str, int]:
    """Each project, its organization, and the bytes of the objects that its rows name: each object once, though a
    result file, a checkpoint and a model may share it."""
    named = union(
        *(
            select(column.class_.project_id, column.label("key"), size.label("bytes")).where(column.is_not(None))
            for column, size in (
                (File.storage_key, File.bytes),
                (UploadPart.storage_key, UploadPart.bytes),
                (Checkpoint.adapter_key, Checkpoint.adapter_bytes),
                (Checkpoint.state_key, Checkpoint.state_bytes),
                (FineTunedModel.adapter_key, FineTunedModel.adapter_bytes),
                (LogSegment.storage_key, LogSegment.bytes),
            )
        )
    ).subquery()
    total = func.sum(named.c.bytes)
    query = select(Project.id, Project.organization_id, total).join(named, named.c.project_id == Project.id)
    return query.group_by(Project.id, Project.organization_id)


async def alone(session: AsyncSession, purpose: str) -> None:
    """Until the end of its transaction this session is the only one for the purpose: others wait here.

    For what is looked for and then made, where there is no row yet to lock. SQLite has one writer anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(purpose, 0))))


async def end_silent_transactions(session: AsyncSession, *, older_than_seconds: float) -> int:
    """End PostgreSQL's transactions of Hone's that began longer ago and wait for their client. Returns how many.

    PostgreSQL's own limits leave one state out: between the preparation of a statement and its execution, where
    neither of the two counts the time. A process that sleeps or is cut off there would keep its rows locked until TCP
    gives it up, in two hours. SQLite's lock goes with its process.
    """
    if session.get_bind().dialect.name == "sqlite":
        return 0
    query = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :application "
        "AND datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() "
        "AND wait_event = 'ClientRead' AND xact_start < clock_timestamp() - make_interval(secs => :seconds)"
    )
    ended = await session.execute(query, {"application": drivers.APPLICATION, "seconds": older_than_seconds})
    return len(ended.all())


async def database_now(session: AsyncSession) -> datetime:
    """The database's clock, which is the one that leases are measured by: workers' clocks may differ."""
    if session.get_bind().dialect.name == "sqlite":
        text: Any = await session.scalar(select(literal_column("strftime('%Y-%m-%dT%H:%M:%f', 'now')")))
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    return (await session.execute(select(func.clock_timestamp()))).scalar_one()


def _is_shared(model: type[ProjectRow], name: InstrumentedAttribute[str], principal: Principal) -> ColumnElement[bool]:
    return exists().where(
        CheckpointPermission.project_id == model.project_id,
        CheckpointPermission.model_name == name,
        CheckpointPermission.shared_with_id == principal.project_id,
    )
