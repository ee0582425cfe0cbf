"""The people of an organization, and their roles in its projects. What they do, they do with keys."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal, Role
from app.db.audit_models import Action
from app.db.models import ApiKey, Project
from app.db.queries import alone, of_organization, of_project, server_rows
from app.db.tenancy_models import ProjectUser, User
from app.errors import InvalidRequest, NotFound
from app.ids import new_id, utc_now
from app.services import audit, lookup, names, project_keys, projects


@dataclass(frozen=True)
class Known:
    """A user with what is told of one: roles by project, and when one of the keys was last used."""

    user: User
    roles: Sequence[tuple[Project, Role]]
    last_used_at: datetime | None


@dataclass(frozen=True)
class Member:
    user: User
    row: ProjectUser


async def search(
    session: AsyncSession, principal: Principal, *, emails: Sequence[str], after: str | None, limit: int
) -> lookup.Page[Known]:
    """`emails` leaves only the users of these addresses."""
    query = of_organization(User, principal).where(User.removed_at.is_(None))
    if emails:
        query = query.where(User.email.in_([email.lower() for email in emails]))
    order = (User.created_at, User.id)
    page = await lookup.page(session, query, cursor=User.id, order=order, after=after, limit=limit)
    return lookup.Page(await known(session, principal, page.rows), has_more=page.has_more)


async def get(session: AsyncSession, principal: Principal, *, user_id: str, lock: bool = False) -> User:
    query = of_organization(User, principal).where(User.removed_at.is_(None))
    found = await lookup.find(session, query.with_for_update(key_share=True) if lock else query, User.id, user_id)
    if found is None:
        raise NotFound(f"No user found with id '{lookup.shown(user_id)}'.", code="user_not_found")
    return found


async def known(session: AsyncSession, principal: Principal, users: Iterable[User]) -> Sequence[Known]:
    users = list(users)
    ids = [user.id for user in users]
    query = (
        of_organization(Project, principal)
        .join(ProjectUser, ProjectUser.project_id == Project.id)
        .where(ProjectUser.user_id.in_(ids))
        .order_by(Project.created_at, Project.id)
        .add_columns(ProjectUser.user_id, ProjectUser.role)
    )
    roles: dict[str, list[tuple[Project, Role]]] = {}
    for project, user_id, role in await session.execute(query):
        roles.setdefault(user_id, []).append((project, Role(role)))
    uses = server_rows(ApiKey).where(ApiKey.user_id.in_(ids)).group_by(ApiKey.user_id)
    used = uses.with_only_columns(ApiKey.user_id, func.max(ApiKey.last_used_at))
    last = {row[0]: row[1] for row in await session.execute(used)}
    return [Known(user, roles.get(user.id, []), last.get(user.id)) for user in users]


async def change_role(session: AsyncSession, principal: Principal, *, user_id: str, role: Role | None) -> User:
    """In the organization; None leaves it."""
    user = await get(session, principal, user_id=user_id, lock=True)
    if role is not None:
        user.role = role
        audit.record(session, None, Action.USER_UPDATED, user.id, organization_id=user.organization_id, role=role)
    return user


async def remove(session: AsyncSession, principal: Principal, *, user_id: str) -> User:
    """From the organization and all of its projects; the user's keys are good no more."""
    user = await get(session, principal, user_id=user_id, lock=True)
    of_user = of_organization(Project, principal).join(ProjectUser, ProjectUser.project_id == Project.id)
    for project in list(await session.scalars(of_user.where(ProjectUser.user_id == user.id))):
        await remove_member(session, project, await member(session, principal, project, user_id=user.id))
    user.removed_at = utc_now()
    audit.record(session, None, Action.USER_DELETED, user.id, organization_id=user.organization_id)
    return user


async def search_members(
    session: AsyncSession, principal: Principal, project: Project, *, after: str | None, limit: int
) -> lookup.Page[Member]:
    page = await lookup.page(
        session,
        of_project(ProjectUser, project.id),
        cursor=ProjectUser.user_id,
        order=(ProjectUser.added_at, ProjectUser.user_id),
        after=after,
        limit=limit,
    )
    query = of_organization(User, principal).where(User.id.in_([row.user_id for row in page.rows]))
    users = {user.id: user for user in await session.scalars(query)}
    return lookup.Page([Member(users[row.user_id], row) for row in page.rows], has_more=page.has_more)


async def member(session: AsyncSession, principal: Principal, project: Project, *, user_id: str) -> Member:
    row = await lookup.find(session, of_project(ProjectUser, project.id), ProjectUser.user_id, user_id)
    if row is None:
        raise NotFound(f"No user found with id '{lookup.shown(user_id)}' in this project.", code="user_not_found")
    return Member(await get(session, principal, user_id=row.user_id), row)


async def add_member(
    session: AsyncSession,
    principal: Principal,
    project: Project,
    *,
    role: Role,
    user_id: str | None = None,
    email: str | None = None,
    name: str | None = None,
) -> Member:
    """Whoever is in the project already gets the role. An email address that is new makes a user."""
    projects.require_active(project)
    if (user_id is None) == (email is None):
        raise InvalidRequest("Name the user by either 'user_id' or 'email'.", param="user_id")
    if email is not None:
        user = await _of_email(session, principal, email=names.require_email(email), name=name)
    else:
        user = await get(session, principal, user_id=user_id or "")
    row = await session.scalar(of_project(ProjectUser, project.id).where(ProjectUser.user_id == user.id))
    action = Action.MEMBER_UPDATED
    if row is None:
        action = Action.MEMBER_ADDED
        row = ProjectUser(project_id=project.id, user_id=user.id, role=role, added_at=utc_now())
        session.add(row)
        await session.flush()
    row.role = role
    audit.record(session, None, action, user.id, project_id=project.id, role=role)
    return Member(user, row)


async def change_member(
    session: AsyncSession, principal: Principal, project: Project, *, user_id: str, role: Role | None
) -> Member:
    """The role bounds all keys of the member in this project, from the next request on; None leaves it."""
    projects.require_active(project)
    found = await member(session, principal, project, user_id=user_id)
    if role is not None:
        found.row.role = role
        audit.record(session, None, Action.MEMBER_UPDATED, user_id, project_id=project.id, role=role)
    return found


async def remove_member(session: AsyncSession, project: Project, gone: Member) -> None:
    """The keys that the user has in this project are good no more."""
    await project_keys.revoke_all(session, project, user_id=gone.user.id)
    await session.delete(gone.row)
    audit.record(session, None, Action.MEMBER_REMOVED, gone.user.id, project_id=project.id)


async def _of_email(session: AsyncSession, principal: Principal, *, email: str, name: str | None) -> User:
    """Who was removed comes back as the same user, with none of the keys."""
    await alone(session, f"users of {principal.organization_id}")
    user = await session.scalar(of_organization(User, principal).where(User.email == email))
    is_known = user is not None and user.removed_at is None
    if user is None:
        user = User(
            id=new_id("user-"),
            organization_id=principal.organization_id,
            email=email,
            name=names.require(name or email.partition("@")[0]),
            role=Role.READER,
            created_at=utc_now(),
        )
        session.add(user)
        await session.flush()
    if not is_known:
        audit.record(session, None, Action.USER_ADDED, user.id, organization_id=user.organization_id)
    user.removed_at = None
    return user
