"""Which checkpoints stay, and what of them: in rows and in storage."""

import asyncio
from collections.abc import Sequence

from app.auth import Principal
from app.db.models import Checkpoint, CheckpointPermission, Job, JobStatus, StepMetric
from app.db.queries import database_now, of_job
from app.resources import Resources
from app.schemas.jobs import JobCreate
from app.services import endings, jobs, retention
from tests import factories

SPEC = {"n_epochs": 5, "lora": factories.LORA}  # of two steps each


async def make_job(resources: Resources, steps: Sequence[int], **columns: object) -> tuple[Job, list[Checkpoint]]:
    principal, _ = await factories.project(resources)
    values = {"status": JobStatus.RUNNING, "spec": SPEC, "total_steps": 10, **columns}
    job = await factories.job(resources, principal, **values)
    return job, [await factories.checkpoint(resources, job, step=step) for step in steps]


async def prune(resources: Resources, job_id: str, *, epochs: int = 3) -> None:
    async with resources.write() as session:
        await retention.prune(session, await session.get_one(Job, job_id), epochs=epochs)


async def kept(resources: Resources, job_id: str) -> dict[int, bool]:
    """Steps, and whether the state is there; what rows name and what lies in storage agree."""
    async with resources.read() as session:
        rows = list(await session.scalars(of_job(Checkpoint, job_id).order_by(Checkpoint.step)))
    named = {key for row in rows for key in (row.adapter_key, row.state_key) if key is not None}
    assert {key for key in await factories.objects(resources) if f"/{job_id}/" in key} == named
    return {row.step: row.state_key is not None for row in rows}


async def test_those_of_the_last_epochs_stay_and_two_states(resources: Resources) -> None:
    job, _ = await make_job(resources, range(1, 9))
    await prune(resources, job.id)
    assert await kept(resources, job.id) == {3: False, 4: False, 5: False, 6: False, 7: True, 8: True}


async def test_what_a_job_is_resumed_from_stays_in_any_case(resources: Resources) -> None:
    job, _ = await make_job(resources, (2, 4, 6), status=JobStatus.PAUSED)
    await prune(resources, job.id, epochs=1)
    assert await kept(resources, job.id) == {4: True, 6: True}


async def test_a_job_may_say_how_many(resources: Resources) -> None:
    job, _ = await make_job(resources, range(1, 11), extension={"keep_checkpoint_epochs": 5})
    await prune(resources, job.id, epochs=1)
    assert list(await kept(resources, job.id)) == list(range(1, 11))


async def test_a_job_of_a_few_epochs_keeps_them_all(resources: Resources) -> None:
    job, _ = await make_job(resources, range(1, 11), spec={"n_epochs": 3}, total_steps=12)
    await prune(resources, job.id)
    assert list(await kept(resources, job.id)) == list(range(1, 11))


async def test_one_that_is_shared_stays(resources: Resources) -> None:
    job, made = await make_job(resources, (2, 4, 6, 8, 10))
    other, _ = await factories.project(resources)
    async with resources.write() as session:
        session.add(
            CheckpointPermission(
                id="cp_shared",
                project_id=job.project_id,
                model_name=made[0].model_name,
                shared_with_id=other.project_id,
                created_at=job.created_at,
            )
        )
    await prune(resources, job.id)
    assert list(await kept(resources, job.id)) == [2, 6, 8, 10]


async def test_one_that_another_job_continues_from_stays_until_that_has_ended(resources: Resources) -> None:
    job, made = await make_job(resources, (2, 4, 6, 8, 10))
    principal = Principal("key", job.project_id, job.organization_id)
    training = await factories.file(resources, principal)
    async with resources.write() as session:
        body = JobCreate(model=made[0].model_name, training_file=training.id)
        following = await jobs.create(session, principal, body=body)
    await prune(resources, job.id)
    assert list(await kept(resources, job.id)) == [2, 6, 8, 10]
    async with resources.write() as session:
        await jobs.cancel(session, principal, job_id=following.id)
    await prune(resources, job.id)
    assert list(await kept(resources, job.id)) == [6, 8, 10]


async def test_one_that_a_job_is_just_beginning_from_stays(resources: Resources) -> None:
    job, made = await make_job(resources, (2, 4, 6, 8, 10))
    principal = Principal("key", job.project_id, job.organization_id)
    training = await factories.file(resources, principal)
    await prune(resources, job.id, epochs=5)  # letting go of states would lock rows as well
    has_begun = asyncio.Event()

    async def begin() -> None:
        async with resources.write() as session:
            body = JobCreate(model=made[0].model_name, training_file=training.id)
            await jobs.create(session, principal, body=body)
            has_begun.set()
            await asyncio.sleep(0.5)  # and the commit comes after whoever prunes has begun

    async def prune_meanwhile() -> None:
        await has_begun.wait()
        await prune(resources, job.id)

    await asyncio.gather(begin(), prune_meanwhile())
    assert list(await kept(resources, job.id)) == [2, 6, 8, 10]


async def test_an_ended_job_has_no_states(resources: Resources) -> None:
    job, _ = await make_job(resources, (8, 10))
    principal = Principal("key", job.project_id, job.organization_id)
    async with resources.write() as session:
        await jobs.pause(session, principal, job_id=job.id)
    assert await kept(resources, job.id) == {8: True, 10: True}
    async with resources.write() as session:
        await jobs.cancel(session, principal, job_id=job.id)
    assert await kept(resources, job.id) == {8: False, 10: False}


async def test_an_ended_job_keeps_what_is_known_of_its_data_but_not_the_encoded_rows(resources: Resources) -> None:
    keys = {part: f"jobs/ftjob-encoded/1/{part}.tokens" for part in ("training", "validation")}
    for key in keys.values():
        await factories.stored(resources, key, b"x")
    facts = {part: {"examples": 12, "tokens": {"key": key, "sha256": "0"}} for part, key in keys.items()}
    job, _ = await make_job(resources, (), id="ftjob-encoded", dataset=facts)
    async with resources.write() as session:
        await endings.after(session, await session.get_one(Job, job.id))
    assert set(keys.values()) <= await factories.objects(resources)
    async with resources.write() as session:
        await jobs.cancel(session, Principal("key", job.project_id, job.organization_id), job_id=job.id)
    async with resources.read() as session:
        ended = await session.get_one(Job, job.id)
    assert ended.dataset == {"training": {"examples": 12}, "validation": {"examples": 12}}
    assert not set(keys.values()) & await factories.objects(resources)


async def test_an_ended_job_tells_of_the_tokens_it_was_trained_on(resources: Resources) -> None:
    job, _ = await make_job(resources, (), current_step=2)
    async with resources.write() as session:
        now = await database_now(session)
        for step, kind, tokens in ((1, "train", 100), (2, "train", 50), (2, "valid", None)):
            values = {"loss": 1.0, "token_accuracy": 0.5} | ({"tokens": tokens} if tokens else {})
            session.add(
                StepMetric(
                    job_id=job.id, project_id=job.project_id, step=step, kind=kind, created_at=now, values=values
                )
            )
    async with resources.write() as session:
        row = await session.get_one(Job, job.id)
        await endings.after(session, row)
        assert row.trained_tokens is None
        row.status = JobStatus.FAILED
        await endings.after(session, row)
        assert row.trained_tokens == 150
