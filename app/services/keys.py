"""API keys: who a key stands for, and the first key of an installation."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, or_
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import ADMIN_KEY_PREFIX, Principal, Role, Scope, hash_key, key_hint, lesser, new_key
from app.db.audit_models import Action
from app.db.models import ApiKey, Organization, Project
from app.db.queries import alone, server_rows
from app.db.tenancy_models import AdminApiKey, ProjectUser, ServiceAccount
from app.errors import Unauthenticated
from app.ids import new_id, utc_now
from app.services import audit, names

_DEFAULT = "default project"


async def authenticate(session: AsyncSession, key: str) -> Principal:
    """Raises Unauthenticated. Keys are found by their hash, so the time taken tells nothing about them.

    One query reads the key and all that bounds it: nothing is remembered from one request to the next, so whatever is
    revoked, removed or disabled is so for every process at once.
    """
    found = await _administrator(session, key) if key.startswith(ADMIN_KEY_PREFIX) else None
    found = found or await _of_project(session, key)
    if found is None:
        raise Unauthenticated(f"Incorrect API key provided: {_masked(key)}.", code="invalid_api_key")
    return found


async def is_valid(session: AsyncSession, principal: Principal) -> bool:
    """Whether the caller's key, which was good when the request began, still is."""
    query = (
        _unrevoked()
        .where(ApiKey.id == principal.key_id, or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > utc_now()))
        .where(Organization.disabled_at.is_(None), Project.archived_at.is_(None), Project.disabled_at.is_(None))
    )
    return await session.scalar(query) is not None


async def record_uses(session: AsyncSession, uses: Mapping[str, datetime]) -> None:
    """Of keys of either kind, by their ids. Other processes record theirs: what is later stays."""
    for model in (ApiKey, AdminApiKey):
        query = server_rows(model).where(model.id.in_(uses)).order_by(model.id)
        for row in await session.scalars(query.with_for_update(key_share=True)):
            if row.last_used_at is None or row.last_used_at < uses[row.id]:
                row.last_used_at = uses[row.id]


async def is_operator(session: AsyncSession, principal: Principal) -> bool:
    """Whether the caller's project is the default one, which the first start has made."""
    project = await _default_project(session)
    return project is not None and project.id == principal.project_id


async def bootstrap(session: AsyncSession, *, api_key: str | None) -> str | None:
    """Make the default organization, project and key, if there are none. Returns a key that was made up, to be shown.

    `api_key` is the operator's own key for the default project; it is added when it is not known yet.
    """
    project = await default_project(session)
    if api_key is not None:
        if not await _is_known(session, api_key):
            create(session, project_id=project.id, name="environment", key=api_key)
        return None
    if await session.scalar(server_rows(ApiKey).where(ApiKey.project_id == project.id).limit(1)) is not None:
        return None
    made = new_key()
    create(session, project_id=project.id, name="default", key=made)
    return made


async def add_to_default_project(session: AsyncSession, *, name: str) -> str:
    """Make another key for the default project and return it; it is stored nowhere in clear."""
    names.require(name)
    project = await default_project(session)
    made = new_key()
    create(session, project_id=project.id, name=name, key=made)
    return made


async def default_project(session: AsyncSession) -> Project:
    """The first project; it is made if there is none."""
    await alone(session, _DEFAULT)
    return await _default_project(session) or await create_project(session, name="default")


async def create_project(session: AsyncSession, *, name: str, organization_id: str | None = None) -> Project:
    """A project of that organization, or of one of its own."""
    now = utc_now()
    if organization_id is None:
        organization = Organization(id=new_id("org-"), name=name, created_at=now)
        session.add(organization)
        await session.flush()  # without relationships, the order of inserts is ours to keep
        audit.record(session, None, Action.ORGANIZATION_CREATED, organization.id, organization_id=organization.id)
        organization_id = organization.id
    project = Project(id=new_id("proj_"), organization_id=organization_id, name=name, created_at=now)
    session.add(project)
    await session.flush()
    audit.record(session, None, Action.PROJECT_CREATED, project.id, project_id=project.id)
    return project


def create(session: AsyncSession, *, project_id: str, name: str, key: str, **columns: Any) -> ApiKey:
    """All of the project, unless `columns` say otherwise."""
    row = ApiKey(
        id=new_id("key_"),
        project_id=project_id,
        name=name,
        key_hash=hash_key(key),
        hint=key_hint(key),
        created_at=utc_now(),
        **columns,
    )
    session.add(row)
    audit.record(session, None, Action.API_KEY_CREATED, row.id, project_id=project_id)
    return row


async def _administrator(session: AsyncSession, key: str) -> Principal | None:
    query = (
        server_rows(AdminApiKey)
        .join(Organization, Organization.id == AdminApiKey.organization_id)
        .where(AdminApiKey.key_hash == hash_key(key), AdminApiKey.revoked_at.is_(None))
        .add_columns(Organization)
    )
    found = (await session.execute(query)).one_or_none()
    if found is None:
        return None
    row, organization = found
    _require_not_expired(key, row.expires_at)
    _require_enabled(organization)
    return Principal(row.id, "", organization.id)


async def _of_project(session: AsyncSession, key: str) -> Principal | None:
    is_member = and_(ProjectUser.project_id == ApiKey.project_id, ProjectUser.user_id == ApiKey.user_id)
    is_account = and_(ServiceAccount.id == ApiKey.service_account_id, ServiceAccount.deleted_at.is_(None))
    query = (
        _unrevoked()
        .outerjoin(ProjectUser, is_member)
        .outerjoin(ServiceAccount, is_account)
        .where(ApiKey.key_hash == hash_key(key))
        .add_columns(Organization, Project, ProjectUser.role, ServiceAccount.role)
    )
    found = (await session.execute(query)).one_or_none()
    if found is None:
        return None
    row, organization, project, user_role, account_role = found
    if (row.user_id is not None and user_role is None) or (row.service_account_id is not None and account_role is None):
        return None  # whose key it is has left the project
    _require_not_expired(key, row.expires_at)
    _require_enabled(organization, project)
    role = Role(row.role)
    for owners in (user_role, account_role):
        role = role if owners is None else lesser(role, Role(owners))
    scopes = None if row.scopes is None else frozenset(Scope(scope) for scope in row.scopes)
    return Principal(row.id, project.id, organization.id, role, scopes)


def _require_not_expired(key: str, expires_at: datetime | None) -> None:
    if expires_at is not None and expires_at <= utc_now():
        raise Unauthenticated(f"The API key {_masked(key)} has expired.", code="api_key_expired")


def _require_enabled(organization: Organization, project: Project | None = None) -> None:
    if organization.disabled_at is not None:
        sentence = "The organization of this API key is disabled by the server's operator."
        raise Unauthenticated(sentence, code="organization_disabled")
    if project is not None and project.archived_at is not None:
        raise Unauthenticated("The project of this API key has been archived.", code="project_archived")
    if project is not None and project.disabled_at is not None:
        sentence = "The project of this API key is disabled by the server's operator."
        raise Unauthenticated(sentence, code="project_disabled")


def _unrevoked() -> Select[ApiKey]:
    """Joined with their project and its organization, either of which may be disabled."""
    return (
        server_rows(ApiKey)
        .join(Project, Project.id == ApiKey.project_id)
        .join(Organization, Organization.id == Project.organization_id)
        .where(ApiKey.revoked_at.is_(None))
    )


async def _default_project(session: AsyncSession) -> Project | None:
    return await session.scalar(server_rows(Project).order_by(Project.created_at, Project.id).limit(1))


async def _is_known(session: AsyncSession, key: str) -> bool:
    """Revoked keys are known too: a restart does not bring them back."""
    return await session.scalar(server_rows(ApiKey).where(ApiKey.key_hash == hash_key(key))) is not None


def _masked(key: str) -> str:
    """Enough to tell keys apart, too little to be one."""
    if len(key) < 16 or not (key.isascii() and key.isprintable()):
        return "***"
    return f"{key[:3]}...{key[-4:]}"
