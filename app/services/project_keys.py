"""The keys of a project, as those see them who administer it. `app.services.keys` tells who holds one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal, Role, Scope, lesser, new_key, permissions
from app.db.audit_models import Action
from app.db.models import ApiKey, Project
from app.db.queries import of_project, server_rows
from app.db.tenancy_models import ProjectUser, ServiceAccount, User
from app.errors import Forbidden, InvalidRequest, NotFound
from app.ids import utc_now
from app.services import audit, keys, lookup, names, projects


@dataclass(frozen=True)
class Owned:
    """A key and whose it is, with that one's role in the project; both are None of a key of the project's own."""

    row: ApiKey
    owner: User | ServiceAccount | None
    role: Role | None


async def search(session: AsyncSession, project: Project, *, after: str | None, limit: int) -> lookup.Page[Owned]:
    order = (ApiKey.created_at, ApiKey.id)
    page = await lookup.page(session, _good(project), cursor=ApiKey.id, order=order, after=after, limit=limit)
    return lookup.Page(await owned(session, project, page.rows), has_more=page.has_more)


async def get(session: AsyncSession, project: Project, *, key_id: str, lock: bool = False) -> ApiKey:
    query = _good(project)
    found = await lookup.find(session, query.with_for_update(key_share=True) if lock else query, ApiKey.id, key_id)
    if found is None:
        raise NotFound(f"No API key found with id '{lookup.shown(key_id)}' in this project.", code="api_key_not_found")
    return found


async def owned(session: AsyncSession, project: Project, rows: Iterable[ApiKey]) -> Sequence[Owned]:
    rows = list(rows)
    user_ids = [row.user_id for row in rows if row.user_id is not None]
    account_ids = [row.service_account_id for row in rows if row.service_account_id is not None]
    users = {user.id: user for user in await session.scalars(server_rows(User).where(User.id.in_(user_ids)))}
    members = await session.scalars(of_project(ProjectUser, project.id).where(ProjectUser.user_id.in_(user_ids)))
    roles = {member.user_id: Role(member.role) for member in members}
    accounts_query = of_project(ServiceAccount, project.id).where(ServiceAccount.id.in_(account_ids))
    accounts = {account.id: account for account in await session.scalars(accounts_query)}

    def of(row: ApiKey) -> Owned:
        if row.user_id is not None:
            return Owned(row, users[row.user_id], roles.get(row.user_id))
        if row.service_account_id is not None:
            account = accounts[row.service_account_id]
            return Owned(row, account, Role(account.role))
        return Owned(row, None, None)

    return [of(row) for row in rows]


async def issue(
    session: AsyncSession,
    principal: Principal,
    project: Project,
    *,
    name: str,
    role: Role,
    scopes: Sequence[str] | None = None,
    owner: ProjectUser | ServiceAccount | None = None,
    expires_in_seconds: int | None = None,
) -> tuple[ApiKey, str]:
    """The row of a new key and the key itself, which is stored nowhere. Nobody gives what they do not have."""
    projects.require_active(project)
    bound = role if owner is None else lesser(role, Role(owner.role))
    _require_grantable(principal, bound, scopes)
    key = new_key()
    row = keys.create(
        session,
        project_id=project.id,
        name=names.require(name),
        key=key,
        role=role,
        scopes=None if scopes is None else list(scopes),
        user_id=owner.user_id if isinstance(owner, ProjectUser) else None,
        service_account_id=owner.id if isinstance(owner, ServiceAccount) else None,
        expires_at=None if expires_in_seconds is None else utc_now() + timedelta(seconds=expires_in_seconds),
    )
    await session.flush()
    return row, key


async def update(
    session: AsyncSession,
    principal: Principal,
    project: Project,
    row: ApiKey,
    *,
    scopes: Sequence[str] | None,
    has_scopes: bool,
    expires_in_seconds: int | None,
) -> None:
    """`scopes` are changed if `has_scopes`; None then takes the restriction away."""
    projects.require_active(project)
    if row.expires_at is not None and row.expires_at <= utc_now():
        raise InvalidRequest("The API key has expired; make another.", code="api_key_expired")
    if has_scopes:
        (mine,) = await owned(session, project, [row])
        bound = Role(row.role) if mine.role is None else lesser(Role(row.role), mine.role)
        _require_grantable(principal, bound, scopes)
        row.scopes = None if scopes is None else list(scopes)
    if expires_in_seconds is not None:
        row.expires_at = utc_now() + timedelta(seconds=expires_in_seconds)
    audit.record(session, None, Action.API_KEY_UPDATED, row.id, project_id=project.id)


def revoke(session: AsyncSession, row: ApiKey) -> None:
    """At once, for every process: each request reads the row."""
    if row.revoked_at is None:
        row.revoked_at = utc_now()
        audit.record(session, None, Action.API_KEY_DELETED, row.id, project_id=row.project_id)


async def revoke_all(
    session: AsyncSession, project: Project, *, user_id: str | None = None, service_account_id: str | None = None
) -> None:
    """Those of a member."""
    owner = ApiKey.user_id == user_id if user_id else ApiKey.service_account_id == service_account_id
    for row in await session.scalars(_good(project).where(owner).with_for_update()):
        revoke(session, row)


async def get_any(session: AsyncSession, *, key_id: str) -> ApiKey:
    """For the operator, who is about to revoke it: nobody else does meanwhile."""
    query = server_rows(ApiKey).where(ApiKey.revoked_at.is_(None)).with_for_update()
    found = await lookup.find(session, query, ApiKey.id, key_id)
    if found is None:
        raise NotFound(f"There is no API key '{lookup.shown(key_id)}'.", code="api_key_not_found")
    return found


def _good(project: Project) -> Select[ApiKey]:
    return server_rows(ApiKey).where(ApiKey.project_id == project.id, ApiKey.revoked_at.is_(None))


def _require_grantable(principal: Principal, role: Role, scopes: Sequence[str] | None) -> None:
    if principal.is_admin_key:
        return
    wanted = permissions(role, None if scopes is None else [Scope(scope) for scope in scopes])
    if beyond := wanted - principal.permissions:
        sentence = f"An API key cannot give what it has not itself: {', '.join(sorted(beyond))}."
        raise Forbidden(sentence, code="missing_scope")
