"""/v1/organization/admin_api_keys"""

from typing import Literal

from fastapi import APIRouter

from app.api import access
from app.api.access import needs
from app.api.deps import After, Caller, ReadSession, WriteSession
from app.api.pages import Limit, page
from app.api.times import unix, unix_or_none
from app.auth import Principal
from app.db.tenancy_models import AdminApiKey
from app.schemas.organization import (
    AdminKeyCreate,
    AdminKeyCreated,
    AdminKeyDeleted,
    AdminKeyList,
    AdminKeyOwner,
    AdminKeyRead,
)
from app.services import admin_keys

router = APIRouter(
    prefix="/v1/organization/admin_api_keys",
    tags=["Organization"],
    dependencies=needs("organization"),
    responses=access.RESPONSES,
)


@router.get("")
async def list_admin_api_keys(
    principal: Caller,
    session: ReadSession,
    after: After = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "asc",
) -> AdminKeyList:
    """List the organization's admin keys, oldest first; revoked ones are not in it."""
    found = await admin_keys.search(session, principal, after=after, limit=limit, ascending=order == "asc")
    return page(AdminKeyList, [_read(row) for row in found.rows], has_more=found.has_more)


@router.post("")
async def create_admin_api_key(body: AdminKeyCreate, principal: Caller, session: WriteSession) -> AdminKeyCreated:
    return await create(session, principal, body)


@router.get("/{key_id}")
async def retrieve_admin_api_key(key_id: str, principal: Caller, session: ReadSession) -> AdminKeyRead:
    return _read(await admin_keys.get(session, principal, key_id=key_id))


@router.delete("/{key_id}")
async def delete_admin_api_key(key_id: str, principal: Caller, session: WriteSession) -> AdminKeyDeleted:
    """Revoke an admin key: it is refused from now on."""
    row = await admin_keys.get(session, principal, key_id=key_id, lock=True)
    admin_keys.revoke(session, row)
    return AdminKeyDeleted(id=row.id)


async def create(session: WriteSession, principal: Principal, body: AdminKeyCreate) -> AdminKeyCreated:
    """Also for the operator."""
    row, key = await admin_keys.issue(session, principal, name=body.name, expires_in_seconds=body.expires_in_seconds)
    return AdminKeyCreated(**_read(row).model_dump(), value=key)


def _read(row: AdminApiKey) -> AdminKeyRead:
    return AdminKeyRead(
        id=row.id,
        name=row.name,
        redacted_value=row.hint,
        created_at=unix(row.created_at),
        expires_at=unix_or_none(row.expires_at),
        last_used_at=unix_or_none(row.last_used_at),
        owner=AdminKeyOwner(id=row.organization_id),
    )
