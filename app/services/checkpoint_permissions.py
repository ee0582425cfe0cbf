"""Sharing models and checkpoints with other projects of the organization, and taking them back.

Who has one shared may read its record, download its adapter and continue from it, but not delete it or share it on;
the job that made it, its files and its events stay its owner's. Nothing is copied: what is taken back, or deleted,
is gone at once, while jobs that have begun from it go on.
"""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.audit_models import Action
from app.db.models import Checkpoint, CheckpointPermission, FineTunedModel, Project
from app.db.queries import of_organization, scoped
from app.errors import InvalidRequest, NotFound
from app.ids import new_id, utc_now
from app.services import adapters, audit, lookup


async def sharer(session: AsyncSession, principal: Principal, *, model_name: str, project_id: str | None) -> Principal:
    """As whom the caller shares: itself; an admin key as the project of its organization that has the model.

    `project_id` leaves only that project. Where there is none, the principal owns nothing, and so finds nothing.
    """
    if not principal.is_admin_key:
        return principal
    projects = of_organization(Project, principal)
    if project_id is not None:
        projects = projects.where(Project.id == project_id)
    models = projects.join(FineTunedModel, FineTunedModel.project_id == Project.id)
    checkpoints = projects.join(Checkpoint, Checkpoint.project_id == Project.id)
    owner = await lookup.find(session, models, FineTunedModel.id, model_name) or await lookup.find(
        session, checkpoints, Checkpoint.model_name, model_name
    )
    return principal if owner is None else Principal(principal.key_id, owner.id, owner.organization_id)


async def search(
    session: AsyncSession,
    principal: Principal,
    *,
    model_name: str,
    project_id: str | None,
    after: str | None,
    limit: int,
    order: Literal["ascending", "descending"],
) -> lookup.Page[CheckpointPermission]:
    """`project_id` leaves only the permission of that project."""
    await _require_own(session, principal, model_name)
    query = scoped(CheckpointPermission, principal).where(CheckpointPermission.model_name == model_name)
    if project_id is not None:
        if (shared_with := await _project(session, principal, project_id)) is None:
            return lookup.Page([], has_more=False)
        query = query.where(CheckpointPermission.shared_with_id == shared_with.id)
    return await lookup.page(
        session,
        query,
        cursor=CheckpointPermission.id,
        order=(CheckpointPermission.created_at, CheckpointPermission.id),
        after=after,
        limit=limit,
        ascending=order == "ascending",
    )


async def create(
    session: AsyncSession, principal: Principal, *, model_name: str, project_ids: Sequence[str]
) -> Sequence[CheckpointPermission]:
    """One for each project, in their order; those that have one keep it. Raises InvalidRequest, and then makes none.

    A project of another organization is as unknown as one that does not exist.
    """
    await _require_own(session, principal, model_name, lock=True)
    made: dict[str, CheckpointPermission] = {}
    for project_id in project_ids:
        project = await _project(session, principal, project_id)
        if project is None:
            sentence = f"The project '{lookup.shown(project_id)}' does not exist in this organization."
            raise InvalidRequest(sentence, code="project_not_found", param="project_ids")
        query = scoped(CheckpointPermission, principal).where(
            CheckpointPermission.model_name == model_name, CheckpointPermission.shared_with_id == project.id
        )
        permission = await session.scalar(query)
        if permission is None:
            permission = CheckpointPermission(
                id=new_id("cp_"),
                project_id=principal.project_id,
                model_name=model_name,
                shared_with_id=project.id,
                created_at=utc_now(),
            )
            session.add(permission)
            audit.record(
                session,
                principal,
                Action.PERMISSION_CREATED,
                permission.id,
                fine_tuned_model_checkpoint=model_name,
                shared_with=project.id,
            )
            await session.flush()
        made[project.id] = permission
    return list(made.values())


async def delete(
    session: AsyncSession, principal: Principal, *, model_name: str, permission_id: str
) -> CheckpointPermission:
    await _require_own(session, principal, model_name)
    query = scoped(CheckpointPermission, principal).where(CheckpointPermission.model_name == model_name)
    found = await lookup.find(session, query.with_for_update(), CheckpointPermission.id, permission_id)
    if found is None:
        sentence = f"The model '{model_name}' has no permission '{lookup.shown(permission_id)}'."
        raise NotFound(sentence, param="permission_id", code="permission_not_found")
    await _delete(session, principal, found)
    return found


async def forget(session: AsyncSession, principal: Principal, *, model_name: str) -> None:
    """Of a model or checkpoint that is deleted."""
    query = scoped(CheckpointPermission, principal).where(CheckpointPermission.model_name == model_name)
    for permission in await session.scalars(query):
        await _delete(session, principal, permission)


async def _delete(session: AsyncSession, principal: Principal, permission: CheckpointPermission) -> None:
    await session.delete(permission)
    audit.record(session, principal, Action.PERMISSION_DELETED, permission.id)


async def _require_own(session: AsyncSession, principal: Principal, model_name: str, *, lock: bool = False) -> None:
    """What is shared with the project is not its own. `lock`: it is not deleted meanwhile, nor shared by another."""
    found = await adapters.find(session, principal, name=model_name, lock=lock)
    if found is None or found.project_id != principal.project_id:
        sentence = f"This project has no fine-tuned model or checkpoint '{lookup.shown(model_name)}'."
        raise NotFound(sentence, param="fine_tuned_model_checkpoint", code="model_not_found")


async def _project(session: AsyncSession, principal: Principal, project_id: str) -> Project | None:
    return await lookup.find(session, of_organization(Project, principal), Project.id, project_id)
