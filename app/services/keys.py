"""API keys: who a key stands for, and the first key of an installation."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal, hash_key, key_hint, new_key
from app.db.audit_models import Action
from app.db.models import ApiKey, Organization, Project
from app.db.queries import alone, server_rows
from app.errors import InvalidRequest, Unauthenticated
from app.ids import new_id, utc_now
from app.services import audit

_DEFAULT = "default project"
_MAX_NAME_CHARACTERS = 64


async def authenticate(session: AsyncSession, key: str) -> Principal:
    """Raises Unauthenticated. Keys are found by their hash, so the time taken tells nothing about them."""
    query = (
        server_rows(ApiKey)
        .join(Project, Project.id == ApiKey.project_id)
        .where(ApiKey.key_hash == hash_key(key), ApiKey.revoked_at.is_(None))
        .with_only_columns(ApiKey.id, ApiKey.project_id, Project.organization_id)
    )
    row = (await session.execute(query)).one_or_none()
    if row is None:
        raise Unauthenticated(f"Incorrect API key provided: {_masked(key)}.", code="invalid_api_key")
    return Principal(*row)


async def is_valid(session: AsyncSession, principal: Principal) -> bool:
    """Whether the caller's key, which was good when the request began, has not been revoked since."""
    query = server_rows(ApiKey).where(ApiKey.id == principal.key_id, ApiKey.revoked_at.is_(None))
    return await session.scalar(query) is not None


async def is_operator(session: AsyncSession, principal: Principal) -> bool:
    """Whether the caller's project is the default one, whose keys only somebody at the server can make."""
    project = await _default_project(session)
    return project is not None and project.id == principal.project_id


async def bootstrap(session: AsyncSession, *, api_key: str | None) -> str | None:
    """Make the default organization, project and key, if there are none. Returns a key that was made up, to be shown.

    `api_key` is the operator's own key for the default project; it is added when it is not known yet.
    """
    await alone(session, _DEFAULT)
    project = await _default_project(session)
    if project is not None:
        if api_key is not None and not await _is_known(session, api_key):
            create(session, project_id=project.id, name="environment", key=api_key)
        return None
    project = await create_project(session, name="default")
    if api_key is not None:
        create(session, project_id=project.id, name="environment", key=api_key)
        return None
    made = new_key()
    create(session, project_id=project.id, name="default", key=made)
    return made


async def add_to_default_project(session: AsyncSession, *, name: str) -> str:
    """Make another key for the default project and return it; it is stored nowhere in clear."""
    if not 1 <= len(name) <= _MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidRequest(f"A key's name has 1 to {_MAX_NAME_CHARACTERS} characters that print.", param="name")
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
        organization_id = organization.id
    project = Project(id=new_id("proj_"), organization_id=organization_id, name=name, created_at=now)
    session.add(project)
    await session.flush()
    audit.record(session, None, Action.PROJECT_CREATED, project.id, project_id=project.id)
    return project


def create(session: AsyncSession, *, project_id: str, name: str, key: str) -> ApiKey:
    row = ApiKey(
        id=new_id("key_"),
        project_id=project_id,
        name=name,
        key_hash=hash_key(key),
        hint=key_hint(key),
        created_at=utc_now(),
    )
    session.add(row)
    audit.record(session, None, Action.API_KEY_CREATED, row.id, project_id=project_id)
    return row


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
