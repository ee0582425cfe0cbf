"""Who sees what of usage and of the audit log: the one place that decides it."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.queries import View
from app.services import keys


async def view_of(session: AsyncSession, principal: Principal) -> View:
    """The operator sees all, a key of an organization its projects, and a project's key its own project."""
    if not principal.project_id:
        return View(organization_id=principal.organization_id)
    if await keys.is_operator(session, principal):
        return View()
    return View(project_id=principal.project_id)
