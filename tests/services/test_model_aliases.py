"""Aliases: other names of base models, which nothing else may take."""

import pytest

from app.errors import InvalidRequest, NotFound
from app.resources import Resources
from app.schemas.jobs import JobCreate
from app.services import base_models, jobs, model_aliases, models
from tests import factories
from worker import checkpoints
from worker.data.base_model_source import BaseModelFacts

ALIAS = "gpt-4o-mini-2024-07-18"


async def put(resources: Resources, name: str = ALIAS, base: str = factories.BASE_MODEL) -> None:
    async with resources.write() as session:
        await model_aliases.put(session, name=name, base_id=base)


async def test_a_job_by_an_alias_is_one_on_the_real_base(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await factories.base_model(resources)
    await put(resources)
    file = await factories.file(resources, principal)
    async with resources.write() as session:
        job = await jobs.create(session, principal, body=JobCreate(model=ALIAS, training_file=file.id, suffix="x"))
        name = await checkpoints.model_name(session, job)
    assert (job.model, job.base_model_id, job.requested_model) == (factories.BASE_MODEL,) * 2 + (ALIAS,)
    assert name.startswith(f"ft:{factories.BASE_MODEL}:test:x:")
    async with resources.write() as session:
        job = await jobs.create(session, principal, body=JobCreate(model=factories.BASE_MODEL, training_file=file.id))
    assert (job.model, job.requested_model) == (factories.BASE_MODEL, None)


async def test_an_alias_can_be_moved_and_removed(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await factories.base_model(resources)
    await factories.base_model(resources, factories.BASE_MODEL_WITH_SLASH)
    await put(resources)
    await put(resources, base=factories.BASE_MODEL_WITH_SLASH)
    async with resources.read() as session:
        assert [(one.id, one.base_model_id) for one in await model_aliases.search(session)] == [
            (ALIAS, factories.BASE_MODEL_WITH_SLASH)
        ]
        listed = [model.id for model in await models.search(session, principal)]
    assert listed == [factories.BASE_MODEL_WITH_SLASH, factories.BASE_MODEL, ALIAS]
    async with resources.write() as session:
        await model_aliases.remove(session, name=ALIAS)
    async with resources.write() as session:
        with pytest.raises(NotFound):
            await model_aliases.remove(session, name=ALIAS)
        with pytest.raises(NotFound):
            await models.get(session, principal, model_id=ALIAS)


@pytest.mark.parametrize("name", [factories.BASE_MODEL, "ft:gpt-4o:x::abc", "a b", "", "x" * 91, "a/adapter", "a\0b"])
async def test_an_alias_takes_no_other_models_name(resources: Resources, name: str) -> None:
    await factories.base_model(resources)
    with pytest.raises(InvalidRequest):
        await put(resources, name)


async def test_an_alias_needs_a_base_model_and_keeps_its_name(resources: Resources) -> None:
    await factories.base_model(resources)
    for unknown in ("nothing", "a\0b", ALIAS):
        with pytest.raises(InvalidRequest, match="not a registered base model"):
            await put(resources, base=unknown)
    await put(resources)
    with pytest.raises(InvalidRequest, match="not a registered base model"):
        await put(resources, "another", base=ALIAS)
    facts = BaseModelFacts(revision="1" * 40, num_parameters=1, context_tokens=1)
    async with resources.write() as session:
        with pytest.raises(InvalidRequest, match="is an alias of"):
            await base_models.add(session, model_id=ALIAS, source="/nowhere", facts=facts)
