"""/v1/organization/projects/{id}/users: the members of a project."""

from fastapi import APIRouter

from app.api import access
from app.api.access import needs
from app.api.deps import After, Caller, ReadSession, WriteSession
from app.api.pages import Limit, page
from app.api.times import unix
from app.auth import Role
from app.schemas.organization import (
    ProjectUserCreate,
    ProjectUserDeleted,
    ProjectUserList,
    ProjectUserRead,
    ProjectUserUpdate,
)
from app.services import projects, users
from app.services.users import Member

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}/users",
    tags=["Organization"],
    dependencies=needs("admin", admin_keys=True),
    responses=access.RESPONSES,
)


@router.get("")
async def list_project_users(
    project_id: str, principal: Caller, session: ReadSession, after: After = None, limit: Limit = 20
) -> ProjectUserList:
    """List a project's members, newest first."""
    project = await projects.get(session, principal, project_id=project_id)
    found = await users.search_members(session, principal, project, after=after, limit=limit)
    return page(ProjectUserList, [_read(one) for one in found.rows], has_more=found.has_more)


@router.post("")
async def create_project_user(
    project_id: str, body: ProjectUserCreate, principal: Caller, session: WriteSession
) -> ProjectUserRead:
    """Add somebody, or give a member another role. Nobody is written to: there is nothing but keys to hand out."""
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    member = await users.add_member(
        session,
        principal,
        project,
        role=Role(body.role),
        user_id=body.user_id,
        email=body.email,
        name=body.name,
    )
    return _read(member)


@router.get("/{user_id}")
async def retrieve_project_user(
    project_id: str, user_id: str, principal: Caller, session: ReadSession
) -> ProjectUserRead:
    project = await projects.get(session, principal, project_id=project_id)
    return _read(await users.member(session, principal, project, user_id=user_id))


@router.post("/{user_id}")
async def modify_project_user(
    project_id: str, user_id: str, body: ProjectUserUpdate, principal: Caller, session: WriteSession
) -> ProjectUserRead:
    """The role bounds all keys of the member in this project, from the next request on."""
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    role = None if body.role is None else Role(body.role)
    return _read(await users.change_member(session, principal, project, user_id=user_id, role=role))


@router.delete("/{user_id}")
async def delete_project_user(
    project_id: str, user_id: str, principal: Caller, session: WriteSession
) -> ProjectUserDeleted:
    """Remove a member. The keys that the member has in this project are refused from now on."""
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    member = await users.member(session, principal, project, user_id=user_id)
    await users.remove_member(session, project, member)
    return ProjectUserDeleted(id=member.user.id)


def _read(member: Member) -> ProjectUserRead:
    return ProjectUserRead(
        id=member.user.id,
        name=member.user.name,
        email=member.user.email,
        role=Role(member.row.role).value,
        added_at=unix(member.row.added_at),
    )
