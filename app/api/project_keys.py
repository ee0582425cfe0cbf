"""/v1/organization/projects/{id}/api_keys. To create one by the API is an extension of Hone's."""

from fastapi import APIRouter

from app.api import access
from app.api.access import needs
from app.api.deps import After, Caller, ReadSession, WriteSession
from app.api.pages import Limit, page
from app.api.times import unix, unix_or_none
from app.auth import Principal, Role
from app.db.models import Project
from app.db.tenancy_models import ServiceAccount, User
from app.schemas.organization import (
    KeyDetails,
    KeyOwner,
    KeyOwnerAccount,
    KeyOwnerUser,
    ProjectKeyCreate,
    ProjectKeyCreated,
    ProjectKeyDeleted,
    ProjectKeyList,
    ProjectKeyRead,
    ProjectKeyUpdate,
    chosen,
)
from app.services import project_keys, projects, users
from app.services.project_keys import Owned

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}/api_keys",
    tags=["Organization"],
    dependencies=needs("admin", admin_keys=True),
    responses=access.RESPONSES,
)


@router.get("")
async def list_project_api_keys(
    project_id: str, principal: Caller, session: ReadSession, after: After = None, limit: Limit = 20
) -> ProjectKeyList:
    """List a project's keys, newest first; revoked ones are not in it."""
    project = await projects.get(session, principal, project_id=project_id)
    found = await project_keys.search(session, project, after=after, limit=limit)
    return page(ProjectKeyList, [read(one) for one in found.rows], has_more=found.has_more)


@router.post("")
async def create_project_api_key(
    project_id: str, body: ProjectKeyCreate, principal: Caller, session: WriteSession
) -> ProjectKeyCreated:
    """Make a key, of the project's own or of a member. It can do nothing that the caller's key cannot."""
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    return await create(session, principal, project, body)


@router.get("/{api_key_id}")
async def retrieve_project_api_key(
    project_id: str, api_key_id: str, principal: Caller, session: ReadSession
) -> ProjectKeyRead:
    project = await projects.get(session, principal, project_id=project_id)
    row = await project_keys.get(session, project, key_id=api_key_id)
    (owned,) = await project_keys.owned(session, project, [row])
    return read(owned)


@router.post("/{api_key_id}")
async def modify_project_api_key(
    project_id: str, api_key_id: str, body: ProjectKeyUpdate, principal: Caller, session: WriteSession
) -> ProjectKeyRead:
    """Change what a key is restricted to, or when it expires."""
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    row = await project_keys.get(session, project, key_id=api_key_id, lock=True)
    await project_keys.update(
        session,
        principal,
        project,
        row,
        scopes=chosen(body.scopes),
        has_scopes=body.scopes is not None,
        expires_in_seconds=body.expires_in_seconds,
    )
    (owned,) = await project_keys.owned(session, project, [row])
    return read(owned)


@router.delete("/{api_key_id}")
async def delete_project_api_key(
    project_id: str, api_key_id: str, principal: Caller, session: WriteSession
) -> ProjectKeyDeleted:
    """Revoke a key: it is refused from now on."""
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    row = await project_keys.get(session, project, key_id=api_key_id, lock=True)
    project_keys.revoke(session, row)
    return ProjectKeyDeleted(id=row.id)


async def create(
    session: WriteSession, principal: Principal, project: Project, body: ProjectKeyCreate
) -> ProjectKeyCreated:
    """Also for the operator."""
    member = None
    if body.user_id is not None:
        member = await users.member(session, principal, project, user_id=body.user_id)
    row, key = await project_keys.issue(
        session,
        principal,
        project,
        name=body.name,
        role=Role(body.role),
        scopes=chosen(body.scopes),
        owner=member.row if member else None,
        expires_in_seconds=body.expires_in_seconds,
    )
    (owned,) = await project_keys.owned(session, project, [row])
    return ProjectKeyCreated(**read(owned).model_dump(), value=key)


def read(owned: Owned) -> ProjectKeyRead:
    row = owned.row
    return ProjectKeyRead(
        id=row.id,
        name=row.name,
        redacted_value=row.hint,
        created_at=unix(row.created_at),
        expires_at=unix_or_none(row.expires_at),
        last_used_at=unix_or_none(row.last_used_at),
        owner=_owner(owned),
        hone=KeyDetails(role=Role(row.role).value, scopes=row.scopes),
    )


def _owner(owned: Owned) -> KeyOwner:
    owner, role = owned.owner, (owned.role or Role.READER).value
    if isinstance(owner, User):
        created_at = unix(owner.created_at)
        user = KeyOwnerUser(id=owner.id, name=owner.name, email=owner.email, role=role, created_at=created_at)
        return KeyOwner(type="user", user=user, service_account=None)
    if isinstance(owner, ServiceAccount):
        account = KeyOwnerAccount(id=owner.id, name=owner.name, role=role, created_at=unix(owner.created_at))
        return KeyOwner(type="service_account", user=None, service_account=account)
    return KeyOwner(type=None, user=None, service_account=None)
