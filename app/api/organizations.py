"""/v1/admin, for the operator: organizations, their projects and keys, and disabling them."""

from fastapi import APIRouter

from app.api import access, admin_keys, project_keys
from app.api import projects as projects_api
from app.api.access import needs
from app.api.deps import After, Caller, ReadSession, WriteSession
from app.api.pages import Limit, page
from app.api.times import unix, unix_or_none
from app.auth import Principal
from app.db.models import Organization, Project
from app.schemas.organization import (
    AdminKeyCreate,
    AdminKeyCreated,
    Disabling,
    OperatorsProject,
    OperatorsProjectList,
    OrganizationCreate,
    OrganizationList,
    OrganizationRead,
    ProjectCreate,
    ProjectKeyCreate,
    ProjectKeyCreated,
    ProjectKeyDeleted,
)
from app.services import organizations, projects
from app.services import project_keys as keys_of_projects

router = APIRouter(
    prefix="/v1/admin", tags=["Administration"], dependencies=needs("server"), responses=access.RESPONSES
)


@router.get("/organizations")
async def list_organizations(session: ReadSession, after: After = None, limit: Limit = 20) -> OrganizationList:
    """List the server's organizations, oldest first."""
    found = await organizations.search(session, after=after, limit=limit)
    return page(OrganizationList, [_read(one) for one in found.rows], has_more=found.has_more)


@router.post("/organizations")
async def create_organization(body: OrganizationCreate, session: WriteSession) -> OrganizationRead:
    return _read(await organizations.create(session, name=body.name))


@router.post("/organizations/{organization_id}")
async def modify_organization(organization_id: str, body: Disabling, session: WriteSession) -> OrganizationRead:
    """Disable an organization, or let it in again. Its runs go on."""
    organization = await organizations.get(session, organization_id=organization_id)
    await organizations.set_disabled(session, organization, is_disabled=body.disabled)
    return _read(organization)


@router.post("/organizations/{organization_id}/admin_api_keys")
async def create_organization_admin_api_key(
    organization_id: str, body: AdminKeyCreate, principal: Caller, session: WriteSession
) -> AdminKeyCreated:
    """Make a key with which the organization administers itself."""
    organization = await organizations.get(session, organization_id=organization_id)
    return await admin_keys.create(session, organizations.administrator(organization, key_id=principal.key_id), body)


@router.post("/organizations/{organization_id}/projects")
async def create_organization_project(
    organization_id: str, body: ProjectCreate, session: WriteSession
) -> OperatorsProject:
    organization = await organizations.get(session, organization_id=organization_id)
    return _read_project(await projects.create(session, organization_id=organization.id, name=body.name))


@router.get("/projects")
async def list_all_projects(session: ReadSession, after: After = None, limit: Limit = 20) -> OperatorsProjectList:
    """List the projects of all organizations, newest first."""
    found = await projects.search_all(session, after=after, limit=limit)
    return page(OperatorsProjectList, [_read_project(one) for one in found.rows], has_more=found.has_more)


@router.post("/projects/{project_id}")
async def modify_any_project(project_id: str, body: Disabling, session: WriteSession) -> OperatorsProject:
    """Disable a project, or let it in again. Its runs go on."""
    project = await projects.get_any(session, project_id=project_id)
    await projects.set_disabled(session, project, is_disabled=body.disabled)
    return _read_project(project)


@router.post("/projects/{project_id}/api_keys")
async def create_any_project_api_key(
    project_id: str, body: ProjectKeyCreate, principal: Caller, session: WriteSession
) -> ProjectKeyCreated:
    project = await projects.get_any(session, project_id=project_id)
    # The operator gives what is asked for: not as the caller's own key, but as who administers the organization.
    administrator = Principal(principal.key_id, "", project.organization_id)
    return await project_keys.create(session, administrator, project, body)


@router.delete("/api_keys/{api_key_id}")
async def delete_any_api_key(api_key_id: str, session: WriteSession) -> ProjectKeyDeleted:
    """Revoke a key of whatever project: it is refused from now on."""
    row = await keys_of_projects.get_any(session, key_id=api_key_id)
    keys_of_projects.revoke(session, row)
    return ProjectKeyDeleted(id=row.id)


def _read(organization: Organization) -> OrganizationRead:
    return OrganizationRead(
        id=organization.id,
        name=organization.name,
        created_at=unix(organization.created_at),
        disabled_at=unix_or_none(organization.disabled_at),
    )


def _read_project(project: Project) -> OperatorsProject:
    return OperatorsProject(
        **projects_api.read(project).model_dump(),
        organization_id=project.organization_id,
        disabled_at=unix_or_none(project.disabled_at),
    )
