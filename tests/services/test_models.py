"""Models: what a project may name, and what goes with one that is deleted."""

import pytest

from app.db.models import FineTunedModel
from app.errors import Forbidden, NotFound
from app.resources import Resources
from app.services import models
from tests import factories


async def test_base_models_come_first_then_own_ones_newest_first(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    stranger, _ = await factories.project(resources)
    await factories.succeeded_job(resources, stranger)
    made = [(await factories.succeeded_job(resources, principal))[1].id for _ in range(3)]
    async with resources.read() as session:
        found = await models.search(session, principal)
    assert [model.id for model in found] == [factories.BASE_MODEL, *made[::-1]]


async def test_only_fine_tuned_models_can_be_deleted(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    _, model = await factories.succeeded_job(resources, principal)
    async with resources.write() as session:
        with pytest.raises(Forbidden):
            await models.delete(session, principal, model_id=factories.BASE_MODEL)
        assert (await models.delete(session, principal, model_id=model.id)).id == model.id
    async with resources.read() as session:
        with pytest.raises(NotFound):
            await models.get(session, principal, model_id=model.id)


async def test_a_jobs_model_that_was_deleted_is_named_as_missing(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    job, model = await factories.succeeded_job(resources, principal)
    async with resources.read() as session:
        found = await models.of_job(session, principal, job_id=job.id)
    assert isinstance(found, FineTunedModel)
    async with resources.write() as session:
        await models.delete(session, principal, model_id=model.id)
    async with resources.read() as session:
        with pytest.raises(NotFound, match=model.id):
            await models.of_job(session, principal, job_id=job.id)
