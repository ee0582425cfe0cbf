"""Members of a project that are no people: programs, each with keys of its own."""

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Role
from app.db.audit_models import Action
from app.db.models import Project
from app.db.queries import of_project
from app.db.tenancy_models import ServiceAccount
from app.errors import NotFound
from app.ids import new_id, utc_now
from app.services import audit, lookup, names, project_keys, projects


async def create(session: AsyncSession, project: Project, *, name: str, role: Role = Role.MEMBER) -> ServiceAccount:
    projects.require_active(project)
    account = ServiceAccount(
        id=new_id("svc_acct_"), project_id=project.id, name=names.require(name), role=role, created_at=utc_now()
    )
    session.add(account)
    await session.flush()
    audit.record(session, None, Action.SERVICE_ACCOUNT_CREATED, account.id, project_id=project.id, role=role)
    return account


async def search(
    session: AsyncSession, project: Project, *, after: str | None, limit: int
) -> lookup.Page[ServiceAccount]:
    order = (ServiceAccount.created_at, ServiceAccount.id)
    return await lookup.page(session, _living(project), cursor=ServiceAccount.id, order=order, after=after, limit=limit)


async def get(session: AsyncSession, project: Project, *, account_id: str) -> ServiceAccount:
    found = await lookup.find(session, _living(project), ServiceAccount.id, account_id)
    if found is None:
        sentence = f"No service account found with id '{lookup.shown(account_id)}' in this project."
        raise NotFound(sentence, code="service_account_not_found")
    return found


async def update(
    session: AsyncSession, project: Project, *, account_id: str, name: str | None, role: Role | None
) -> ServiceAccount:
    """Change what is given; the role bounds the account's keys from the next request on."""
    projects.require_active(project)
    account = await get(session, project, account_id=account_id)
    account.name = account.name if name is None else names.require(name)
    account.role = account.role if role is None else role
    audit.record(session, None, Action.SERVICE_ACCOUNT_UPDATED, account.id, project_id=project.id, role=account.role)
    return account


async def delete(session: AsyncSession, project: Project, *, account_id: str) -> ServiceAccount:
    """Its keys are good no more."""
    account = await get(session, project, account_id=account_id)
    await project_keys.revoke_all(session, project, service_account_id=account.id)
    account.deleted_at = utc_now()
    audit.record(session, None, Action.SERVICE_ACCOUNT_DELETED, account.id, project_id=project.id)
    return account


def _living(project: Project) -> Select[ServiceAccount]:
    return of_project(ServiceAccount, project.id).where(ServiceAccount.deleted_at.is_(None))
