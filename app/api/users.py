"""/v1/organization/users"""

from typing import Annotated

from fastapi import APIRouter, Query

from app.api import access
from app.api.access import needs
from app.api.deps import After, Caller, ReadSession, WriteSession
from app.api.pages import Limit, page
from app.api.times import unix, unix_or_none
from app.auth import Role
from app.schemas.organization import UserDeleted, UserList, UserProject, UserProjects, UserRead, UserUpdate
from app.services import users
from app.services.users import Known

router = APIRouter(
    prefix="/v1/organization/users",
    tags=["Organization"],
    dependencies=needs("organization"),
    responses=access.RESPONSES,
)
Emails = Annotated[
    list[str] | None, Query(alias="emails[]", max_length=100, description="Only the users of these addresses.")
]


@router.get("")
async def list_users(
    principal: Caller, session: ReadSession, emails: Emails = None, after: After = None, limit: Limit = 20
) -> UserList:
    """List the organization's people, newest first."""
    found = await users.search(session, principal, emails=emails or (), after=after, limit=limit)
    return page(UserList, [_read(one) for one in found.rows], has_more=found.has_more)


@router.get("/{user_id}")
async def retrieve_user(user_id: str, principal: Caller, session: ReadSession) -> UserRead:
    user = await users.get(session, principal, user_id=user_id)
    (known,) = await users.known(session, principal, [user])
    return _read(known)


@router.post("/{user_id}")
async def modify_user(user_id: str, body: UserUpdate, principal: Caller, session: WriteSession) -> UserRead:
    role = None if body.role is None else Role(body.role)
    user = await users.change_role(session, principal, user_id=user_id, role=role)
    (known,) = await users.known(session, principal, [user])
    return _read(known)


@router.delete("/{user_id}")
async def delete_user(user_id: str, principal: Caller, session: WriteSession) -> UserDeleted:
    """Remove somebody from the organization and all of its projects. The keys of that user are refused from now on."""
    return UserDeleted(id=(await users.remove(session, principal, user_id=user_id)).id)


def _read(known: Known) -> UserRead:
    user = known.user
    return UserRead(
        id=user.id,
        name=user.name,
        email=user.email,
        role="owner" if user.role == Role.OWNER else "reader",
        added_at=unix(user.created_at),
        api_key_last_used_at=unix_or_none(known.last_used_at),
        projects=UserProjects(
            data=[UserProject(id=project.id, name=project.name, role=role.value) for project, role in known.roles]
        ),
    )
