"""The keys that administer an organization."""

from datetime import timedelta

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import ADMIN_KEY_PREFIX, Principal, hash_key, key_hint, new_key
from app.db.audit_models import Action
from app.db.queries import of_organization
from app.db.tenancy_models import AdminApiKey
from app.errors import NotFound
from app.ids import new_id, utc_now
from app.services import audit, lookup, names


async def issue(
    session: AsyncSession, principal: Principal, *, name: str, expires_in_seconds: int | None = None
) -> tuple[AdminApiKey, str]:
    """The row of a new key and the key itself, which is stored nowhere."""
    key, now = new_key(ADMIN_KEY_PREFIX), utc_now()
    row = AdminApiKey(
        id=new_id("key_"),
        organization_id=principal.organization_id,
        name=names.require(name),
        key_hash=hash_key(key),
        hint=key_hint(key),
        created_at=now,
        expires_at=None if expires_in_seconds is None else now + timedelta(seconds=expires_in_seconds),
    )
    session.add(row)
    await session.flush()
    audit.record(session, None, Action.API_KEY_CREATED, row.id, organization_id=row.organization_id)
    return row, key


async def search(
    session: AsyncSession, principal: Principal, *, after: str | None, limit: int, ascending: bool
) -> lookup.Page[AdminApiKey]:
    return await lookup.page(
        session,
        _good(principal),
        cursor=AdminApiKey.id,
        order=(AdminApiKey.created_at, AdminApiKey.id),
        after=after,
        limit=limit,
        ascending=ascending,
    )


async def get(session: AsyncSession, principal: Principal, *, key_id: str, lock: bool = False) -> AdminApiKey:
    query = _good(principal)
    found = await lookup.find(session, query.with_for_update() if lock else query, AdminApiKey.id, key_id)
    if found is None:
        raise NotFound(f"No admin API key found with id '{lookup.shown(key_id)}'.", code="admin_api_key_not_found")
    return found


def revoke(session: AsyncSession, row: AdminApiKey) -> None:
    if row.revoked_at is None:
        row.revoked_at = utc_now()
        audit.record(session, None, Action.API_KEY_DELETED, row.id, organization_id=row.organization_id)


def _good(principal: Principal) -> Select[AdminApiKey]:
    return of_organization(AdminApiKey, principal).where(AdminApiKey.revoked_at.is_(None))
