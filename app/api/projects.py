"""/v1/organization/projects"""

from fastapi import APIRouter

from app.api import access
from app.api.access import needs
from app.api.deps import After, Caller, ReadSession, WriteSession
from app.api.pages import Limit, page
from app.api.times import unix, unix_or_none
from app.db.models import Project
from app.schemas.organization import ProjectCreate, ProjectList, ProjectRead, ProjectUpdate
from app.services import projects

router = APIRouter(prefix="/v1/organization/projects", tags=["Organization"], responses=access.RESPONSES)


@router.get("", dependencies=needs("organization"))
async def list_projects(
    principal: Caller, session: ReadSession, after: After = None, limit: Limit = 20, include_archived: bool = False
) -> ProjectList:
    """List the organization's projects, newest first."""
    found = await projects.search(session, principal, include_archived=include_archived, after=after, limit=limit)
    return page(ProjectList, [read(project) for project in found.rows], has_more=found.has_more)


@router.post("", dependencies=needs("organization"))
async def create_project(body: ProjectCreate, principal: Caller, session: WriteSession) -> ProjectRead:
    return read(await projects.create(session, organization_id=principal.organization_id, name=body.name))


@router.get("/{project_id}", dependencies=needs("admin", admin_keys=True))
async def retrieve_project(project_id: str, principal: Caller, session: ReadSession) -> ProjectRead:
    return read(await projects.get(session, principal, project_id=project_id))


@router.post("/{project_id}", dependencies=needs("admin", admin_keys=True))
async def modify_project(project_id: str, body: ProjectUpdate, principal: Caller, session: WriteSession) -> ProjectRead:
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    if body.name is not None:
        projects.rename(session, project, name=body.name)
    return read(project)


@router.post("/{project_id}/archive", dependencies=needs("organization"))
async def archive_project(project_id: str, principal: Caller, session: WriteSession) -> ProjectRead:
    """For good: all of its keys are refused from now on. Its runs go on."""
    project = await projects.get(session, principal, project_id=project_id, lock=True)
    await projects.archive(session, project)
    return read(project)


def read(project: Project) -> ProjectRead:
    return ProjectRead(
        id=project.id,
        name=project.name,
        created_at=unix(project.created_at),
        archived_at=unix_or_none(project.archived_at),
        status="active" if project.archived_at is None else "archived",
    )
