"""Organizations, which only the server's operator makes and disables."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.audit_models import Action
from app.db.models import Organization
from app.db.queries import alone, server_rows
from app.errors import InvalidRequest, NotFound
from app.ids import new_id, utc_now
from app.services import audit, keys, lookup, names


def administrator(organization: Organization, *, key_id: str = "") -> Principal:
    """The operator, as who administers the organization."""
    return Principal(key_id=key_id, project_id="", organization_id=organization.id)


async def create(session: AsyncSession, *, name: str) -> Organization:
    """Names are taken once: the names of models tell by them whose they are."""
    name = names.require_organization(name)
    await alone(session, "organizations")
    if await session.scalar(server_rows(Organization).where(Organization.name == name)) is not None:
        raise InvalidRequest(f"There is an organization '{name}' already.", param="name", code="organization_exists")
    made = Organization(id=new_id("org-"), name=name, created_at=utc_now())
    session.add(made)
    audit.record(session, None, Action.ORGANIZATION_CREATED, made.id, organization_id=made.id)
    await session.flush()
    return made


async def search(session: AsyncSession, *, after: str | None, limit: int) -> lookup.Page[Organization]:
    return await lookup.page(
        session,
        server_rows(Organization),
        cursor=Organization.id,
        order=(Organization.created_at, Organization.id),
        after=after,
        limit=limit,
        ascending=True,
    )


async def get(session: AsyncSession, *, organization_id: str) -> Organization:
    found = await lookup.find(session, server_rows(Organization), Organization.id, organization_id)
    if found is None:
        raise NotFound(f"There is no organization '{lookup.shown(organization_id)}'.", code="organization_not_found")
    return found


async def named(session: AsyncSession, name: str) -> Organization:
    """By its name or its id."""
    by_name = server_rows(Organization).where(Organization.name == name).order_by(Organization.created_at).limit(1)
    return await session.scalar(by_name) or await get(session, organization_id=name)


async def set_disabled(session: AsyncSession, organization: Organization, *, is_disabled: bool) -> None:
    """While it is disabled, its projects are. Repeating it changes nothing."""
    await session.refresh(organization, with_for_update=True)
    if is_disabled and (await keys.default_project(session)).organization_id == organization.id:
        raise InvalidRequest("The server's own organization cannot be disabled: its keys are the operator's.")
    if is_disabled != (organization.disabled_at is not None):
        organization.disabled_at = utc_now() if is_disabled else None
        action = Action.ORGANIZATION_DISABLED if is_disabled else Action.ORGANIZATION_ENABLED
        audit.record(session, None, action, organization.id, organization_id=organization.id)
