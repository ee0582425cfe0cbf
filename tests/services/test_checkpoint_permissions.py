"""Sharing models: who may use them, for how long, and whose objects are kept for it."""

import asyncio

import pytest

from app.auth import Principal
from app.db import after_commit
from app.db.models import Job
from app.db.queries import scoped
from app.errors import Forbidden, InvalidRequest, NotFound
from app.resources import Resources
from app.schemas.jobs import JobCreate
from app.services import adapters, checkpoint_permissions, checkpoints, files, jobs, models
from tests import factories


async def share(resources: Resources, owner: Principal, name: str, *others: Principal) -> list[str]:
    async with resources.write() as session:
        made = await checkpoint_permissions.create(
            session, owner, model_name=name, project_ids=[other.project_id for other in others]
        )
    return [one.id for one in made]


async def is_readable(resources: Resources, principal: Principal, name: str) -> bool:
    async with resources.read() as session:
        return await adapters.find(session, principal, name=name) is not None


async def continued(resources: Resources, principal: Principal, name: str) -> Job:
    file = await factories.file(resources, principal)
    async with resources.write() as session:
        return await jobs.create(session, principal, body=JobCreate(model=name, training_file=file.id))


async def test_what_is_shared_can_be_used_and_nothing_else(resources: Resources) -> None:
    owner, _ = await factories.project(resources)
    other, _ = await factories.project(resources, beside=owner)
    third, _ = await factories.project(resources, beside=owner)
    job, model = await factories.succeeded_job(resources, owner)
    name = model.id
    kept = (await factories.succeeded_job(resources, owner))[1].id
    at_step = (await factories.checkpoint(resources, job, step=1)).model_name
    await share(resources, owner, name, other)
    await share(resources, owner, at_step, other)

    assert await is_readable(resources, other, name)
    assert await is_readable(resources, other, at_step)
    assert not await is_readable(resources, other, kept)
    assert not await is_readable(resources, third, name)
    async with resources.read() as session:
        listed = [model.id for model in await models.search(session, other)]
        assert listed == [factories.BASE_MODEL, name]
        assert (await models.get(session, other, model_id=name)).id == name
        for hidden in (
            jobs.get(session, other, job_id=job.id),
            checkpoints.search(session, other, job_id=job.id, after=None, limit=10),
            files.get(session, other, file_id=job.result_file_ids[1]),
        ):
            with pytest.raises(NotFound):
                await hidden
    begun = await continued(resources, other, name)
    assert (begun.model, begun.project_id) == (name, other.project_id)
    assert begun.initial_adapter is not None
    assert begun.initial_adapter["key"] == model.adapter_key
    assert (await continued(resources, other, at_step)).model == at_step


async def test_who_has_it_shared_can_neither_delete_it_nor_share_it_on(resources: Resources) -> None:
    owner, _ = await factories.project(resources)
    other, _ = await factories.project(resources, beside=owner)
    third, _ = await factories.project(resources, beside=owner)
    name = (await factories.succeeded_job(resources, owner))[1].id
    (permission,) = await share(resources, owner, name, other)
    async with resources.write() as session:
        with pytest.raises(Forbidden):
            await models.delete(session, other, model_id=name)
        with pytest.raises(NotFound):
            await checkpoint_permissions.create(session, other, model_name=name, project_ids=[third.project_id])
        with pytest.raises(NotFound):
            await checkpoint_permissions.delete(session, other, model_name=name, permission_id=permission)
    assert await is_readable(resources, other, name)


async def test_what_is_taken_back_is_gone_and_what_has_begun_goes_on(resources: Resources) -> None:
    owner, _ = await factories.project(resources)
    other, _ = await factories.project(resources, beside=owner)
    name = (await factories.succeeded_job(resources, owner))[1].id
    (permission,) = await share(resources, owner, name, other)
    begun = await continued(resources, other, name)
    async with resources.write() as session:
        await checkpoint_permissions.delete(session, owner, model_name=name, permission_id=permission)
    assert not await is_readable(resources, other, name)
    with pytest.raises(InvalidRequest, match="does not exist"):
        await continued(resources, other, name)
    assert begun.initial_adapter is not None
    # Its end must not take the owner's model with it.
    async with resources.write() as session:
        await jobs.cancel(session, other, job_id=begun.id)
        assert after_commit.doomed_objects(session) == set()
    assert begun.initial_adapter["key"] in await factories.objects(resources)


async def test_a_deleted_models_object_waits_for_the_last_project_that_continues_from_it(resources: Resources) -> None:
    owner, _ = await factories.project(resources)
    other, _ = await factories.project(resources, beside=owner)
    job, model = await factories.succeeded_job(resources, owner)
    name = model.id
    await share(resources, owner, name, other)
    begun = await continued(resources, other, name)
    assert begun.initial_adapter is not None
    key = begun.initial_adapter["key"]
    async with resources.write() as session:
        await models.delete(session, owner, model_id=name)
    async with resources.write() as session:
        await files.delete(session, owner, file_id=job.result_file_ids[1])
    assert key in await factories.objects(resources)
    assert not await is_readable(resources, other, name)
    async with resources.read() as session:
        assert list(await session.scalars(scoped(checkpoint_permissions.CheckpointPermission, owner))) == []
    async with resources.write() as session:
        await jobs.cancel(session, other, job_id=begun.id)
    assert key not in await factories.objects(resources)


async def test_sharing_again_or_at_once_makes_no_second_permission(resources: Resources) -> None:
    owner, _ = await factories.project(resources)
    other, _ = await factories.project(resources, beside=owner)
    name = (await factories.succeeded_job(resources, owner))[1].id
    made = await asyncio.gather(*(share(resources, owner, name, other) for _ in range(4)))
    assert len({tuple(one) for one in made}) == 1
    assert await share(resources, owner, name, other, other) == made[0]


async def test_projects_of_other_organizations_are_unknown(resources: Resources) -> None:
    owner, _ = await factories.project(resources)
    near, _ = await factories.project(resources, beside=owner)
    stranger, _ = await factories.project(resources)
    name = (await factories.succeeded_job(resources, owner))[1].id
    sentences: set[str] = set()
    for unknown in (stranger.project_id, "proj_nobody", "a\0b"):
        async with resources.write() as session:
            with pytest.raises(InvalidRequest) as refused:
                await checkpoint_permissions.create(
                    session, owner, model_name=name, project_ids=[near.project_id, unknown]
                )
        sentences.add(refused.value.message.replace(unknown.replace("\0", "?"), "X"))
    assert sentences == {"The project 'X' does not exist in this organization."}
    assert not await is_readable(resources, stranger, name)
