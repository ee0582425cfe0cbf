"""/v1/organization/projects/{id}/service_accounts"""

from fastapi import APIRouter

from app.api import access
from app.api.access import needs
from app.api.deps import After, Caller, ReadSession, WriteSession
from app.api.pages import Limit, page
from app.api.times import unix, unix_or_none
from app.auth import Role
from app.db.models import ApiKey
from app.db.tenancy_models import ServiceAccount
from app.errors import InvalidRequest
from app.schemas.organization import (
    ServiceAccountCreate,
    ServiceAccountCreated,
    ServiceAccountDeleted,
    ServiceAccountKey,
    ServiceAccountKeyCreate,
    ServiceAccountList,
    ServiceAccountRead,
    ServiceAccountUpdate,
    chosen,
)
from app.services import project_keys, projects, service_accounts

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}/service_accounts",
    tags=["Organization"],
    dependencies=needs("admin", admin_keys=True),
    responses=access.RESPONSES,
)


@router.get("")
async def list_project_service_accounts(
    project_id: str, principal: Caller, session: ReadSession, after: After = None, limit: Limit = 20
) -> ServiceAccountList:
    """List a project's service accounts, newest first."""
    project = await projects.get(session, principal, project_id=project_id)
    found = await service_accounts.search(session, project, after=after, limit=limit)
    return page(ServiceAccountList, [_read(one) for one in found.rows], has_more=found.has_more)


@router.post("")
async def create_project_service_account(
    project_id: str, body: ServiceAccountCreate, principal: Caller, session: WriteSession
) -> ServiceAccountCreated:
    """Make a service account with the role of a member, and a key of it."""
    if body.create_service_account_only and body.expires_in_seconds is not None:
        raise InvalidRequest("Without a key there is nothing that expires.", param="expires_in_seconds")
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    account = await service_accounts.create(session, project, name=body.name)
    if body.create_service_account_only:
        return ServiceAccountCreated(**_read(account).model_dump(), api_key=None)
    row, key = await project_keys.issue(
        session,
        principal,
        project,
        name="Secret Key",
        role=Role.OWNER,  # the account's own role bounds it
        owner=account,
        expires_in_seconds=body.expires_in_seconds,
    )
    return ServiceAccountCreated(**_read(account).model_dump(), api_key=_key(row, key))


@router.get("/{service_account_id}")
async def retrieve_project_service_account(
    project_id: str, service_account_id: str, principal: Caller, session: ReadSession
) -> ServiceAccountRead:
    project = await projects.get(session, principal, project_id=project_id)
    return _read(await service_accounts.get(session, project, account_id=service_account_id))


@router.post("/{service_account_id}")
async def modify_project_service_account(
    project_id: str, service_account_id: str, body: ServiceAccountUpdate, principal: Caller, session: WriteSession
) -> ServiceAccountRead:
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    role = None if body.role is None else Role(body.role)
    account = await service_accounts.update(session, project, account_id=service_account_id, name=body.name, role=role)
    return _read(account)


@router.delete("/{service_account_id}")
async def delete_project_service_account(
    project_id: str, service_account_id: str, principal: Caller, session: WriteSession
) -> ServiceAccountDeleted:
    """Delete a service account. Its keys are refused from now on."""
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    account = await service_accounts.delete(session, project, account_id=service_account_id)
    return ServiceAccountDeleted(id=account.id)


@router.post("/{service_account_id}/api_keys")
async def create_project_service_account_api_key(
    project_id: str,
    service_account_id: str,
    body: ServiceAccountKeyCreate,
    principal: Caller,
    session: WriteSession,
) -> ServiceAccountKey:
    """Make another key of a service account."""
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    account = await service_accounts.get(session, project, account_id=service_account_id)
    row, key = await project_keys.issue(
        session,
        principal,
        project,
        name=body.name,
        role=Role.OWNER,
        scopes=chosen(body.scopes),
        owner=account,
        expires_in_seconds=body.expires_in_seconds,
    )
    return _key(row, key)


def _read(account: ServiceAccount) -> ServiceAccountRead:
    return ServiceAccountRead(
        id=account.id, name=account.name, role=Role(account.role).value, created_at=unix(account.created_at)
    )


def _key(row: ApiKey, key: str) -> ServiceAccountKey:
    return ServiceAccountKey(
        id=row.id,
        name=row.name,
        created_at=unix(row.created_at),
        expires_at=unix_or_none(row.expires_at),
        value=key,
    )
