"""Projects of an organization. Who asks sees them all with an admin key, and else the one of the key."""

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.audit_models import Action
from app.db.models import Project
from app.db.queries import of_organization, server_rows
from app.errors import InvalidRequest, NotFound
from app.ids import new_id, utc_now
from app.services import audit, jobs, keys, lookup, names

_ORDER = (Project.created_at, Project.id)


async def create(session: AsyncSession, *, organization_id: str, name: str) -> Project:
    await keys.default_project(session)  # which is the oldest, and must not be this one
    project = Project(
        id=new_id("proj_"), organization_id=organization_id, name=names.require(name), created_at=utc_now()
    )
    session.add(project)
    await session.flush()
    _record(session, Action.PROJECT_CREATED, project)
    return project


async def search(
    session: AsyncSession, principal: Principal, *, include_archived: bool, after: str | None, limit: int
) -> lookup.Page[Project]:
    query = _visible(principal)
    if not include_archived:
        query = query.where(Project.archived_at.is_(None))
    return await lookup.page(session, query, cursor=Project.id, order=_ORDER, after=after, limit=limit)


async def search_all(session: AsyncSession, *, after: str | None, limit: int) -> lookup.Page[Project]:
    """For the operator."""
    query = server_rows(Project)
    return await lookup.page(session, query, cursor=Project.id, order=_ORDER, after=after, limit=limit)


async def get(session: AsyncSession, principal: Principal, *, project_id: str, lock: bool = False) -> Project:
    """A project of another organization is as unknown as one that does not exist. `lock`: it is not archived, and its
    members and keys do not change, meanwhile; rows that refer to it may come."""
    query = _visible(principal)
    found = await lookup.find(session, query.with_for_update(key_share=True) if lock else query, Project.id, project_id)
    return _required(found, project_id)


async def get_any(session: AsyncSession, *, project_id: str) -> Project:
    """For the operator."""
    found = await lookup.find(session, server_rows(Project), Project.id, project_id)
    return _required(found, project_id)


async def named(session: AsyncSession, name: str) -> Project:
    """For the operator: by its id, or by its name if only one has it."""
    if found := await lookup.find(session, server_rows(Project), Project.id, name):
        return found
    by_name = server_rows(Project).where(Project.name == name, Project.archived_at.is_(None)).limit(2)
    several = list(await session.scalars(by_name))
    if len(several) > 1:
        raise InvalidRequest(f"Several projects are called '{lookup.shown(name)}'; name one by its id.")
    return _required(several[0] if several else None, name)


def rename(session: AsyncSession, project: Project, *, name: str) -> None:
    require_active(project)
    project.name = names.require(name)
    _record(session, Action.PROJECT_UPDATED, project)


async def archive(session: AsyncSession, project: Project) -> None:
    """For good: none of its keys is good any more, and its unfinished jobs are cancelled. What it holds stays."""
    await _require_not_default(session, project)
    if project.archived_at is None:
        project.archived_at = utc_now()
        _record(session, Action.PROJECT_ARCHIVED, project)
        await jobs.cancel_all(session, project_id=project.id)


async def set_disabled(session: AsyncSession, project: Project, *, is_disabled: bool) -> None:
    """While it is disabled, none of its keys is good, and what waits goes on waiting. Repeating it changes nothing."""
    if is_disabled:
        await _require_not_default(session, project)
    await session.refresh(project, with_for_update=True)
    if is_disabled != (project.disabled_at is not None):
        project.disabled_at = utc_now() if is_disabled else None
        _record(session, Action.PROJECT_DISABLED if is_disabled else Action.PROJECT_ENABLED, project)


def require_active(project: Project) -> None:
    if project.archived_at is not None:
        raise InvalidRequest("The project has been archived.", code="project_archived")


async def _require_not_default(session: AsyncSession, project: Project) -> None:
    if (await keys.default_project(session)).id == project.id:
        raise InvalidRequest("The server's default project must stay: its keys are the operator's.")


def _record(session: AsyncSession, action: Action, project: Project) -> None:
    audit.record(session, None, action, project.id, project_id=project.id)


def _visible(principal: Principal) -> Select[Project]:
    query = of_organization(Project, principal)
    return query if principal.is_admin_key else query.where(Project.id == principal.project_id)


def _required(project: Project | None, project_id: str) -> Project:
    if project is None:
        raise NotFound(f"No project found with id '{lookup.shown(project_id)}'.", code="project_not_found")
    return project
