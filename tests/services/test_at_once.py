"""What several processes do at the same moment: one of them wins, and the others see what it did."""

import asyncio
from collections.abc import Awaitable

import pytest

from app.db.models import BaseModel, Event, Project
from app.db.queries import database_now, of_job, scoped, server_rows
from app.errors import InvalidRequest, NotFound, Unavailable
from app.resources import Resources
from app.schemas.jobs import JobCreate
from app.services import base_models, events, files, jobs, keys, leases
from app.services.leases import Lease
from tests import factories
from tests.worker.holding import held_job
from worker.data.base_model_source import BaseModelFacts

FACTS = BaseModelFacts(revision="0" * 40, num_parameters=1, context_tokens=16)


async def test_servers_that_start_together_make_one_default_project(resources: Resources) -> None:
    async def start() -> str | None:
        async with resources.write() as session:
            return await keys.bootstrap(session, api_key=None)

    made = await asyncio.gather(*(start() for _ in range(5)))
    assert len([key for key in made if key is not None]) == 1
    async with resources.read() as session:
        assert len(list(await session.scalars(server_rows(Project)))) == 1


async def test_a_base_model_registered_by_several_is_registered_once(resources: Resources) -> None:
    async def register() -> None:
        async with resources.write() as session:
            await base_models.add(session, model_id="one", source="/nowhere", facts=FACTS)

    await asyncio.gather(*(register() for _ in range(5)))
    async with resources.read() as session:
        assert len(list(await session.scalars(server_rows(BaseModel)))) == 1


async def test_of_two_deletions_one_finds_nothing(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    file = await factories.file(resources, principal)

    async def delete() -> None:
        async with resources.write() as session:
            await files.delete(session, principal, file_id=file.id)

    ended = await asyncio.gather(delete(), delete(), return_exceptions=True)
    assert sorted(type(one).__name__ for one in ended) == ["NoneType", "NotFound"]
    assert any(isinstance(one, NotFound) for one in ended)


async def test_a_job_that_is_accepted_while_its_file_is_deleted_has_its_file(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await factories.base_model(resources)
    for _ in range(10):
        file = await factories.file(resources, principal)
        body = JobCreate(model=factories.BASE_MODEL, training_file=file.id)

        async def create(body: JobCreate) -> None:
            async with resources.write() as session:
                await jobs.create(session, principal, body=body)

        async def delete(file_id: str) -> None:
            async with resources.write() as session:
                await files.delete(session, principal, file_id=file_id)

        refused, _ = await asyncio.gather(create(body), delete(file.id), return_exceptions=True)
        assert refused is None or isinstance(refused, InvalidRequest)
        assert (file.storage_key in await factories.objects(resources)) == (refused is None)


async def test_events_are_numbered_without_gaps(resources: Resources) -> None:
    lease = await held_job(resources)
    before = await _sequences(resources, lease.job_id)

    async def touch(number: int) -> None:
        async with resources.write() as session:
            job, now = await leases.hold(session, lease)
            events.add(session, job, f"touched {number}", now=now)

    await asyncio.gather(*(touch(number) for number in range(40)))
    assert await _sequences(resources, lease.job_id) == list(range(1, len(before) + 41))


async def test_transactions_that_would_wait_for_each_other_are_told_so(resources: Resources) -> None:
    """PostgreSQL ends one of the two, whose client may try again; on SQLite the second waits for the first."""
    first, second = await held_job(resources), await held_job(resources)

    async def touch(order: list[Lease]) -> None:
        async with resources.write() as session:
            for lease in order:
                await leases.hold(session, lease)
                await asyncio.sleep(0.1)

    ended = await _ended(touch([first, second]), touch([second, first]))
    assert None in ended
    assert all(one is None or isinstance(one, Unavailable) for one in ended)


async def test_the_databases_clock_moves_within_a_transaction(resources: Resources) -> None:
    async with resources.write() as session:
        before = await database_now(session)
        await asyncio.sleep(0.05)
        assert (await database_now(session) - before).total_seconds() >= 0.04


async def test_pages_hold_every_row_once_whatever_the_language_sorts_by(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    made = [await factories.file(resources, principal, content=b"x") for _ in range(8)]
    async with resources.write() as session:
        for file, name in zip(made, ("aB", "Ab", "ab", "AB", "a-b", "a_b", "_ab", "b"), strict=True):
            row = await session.get_one(type(file), file.id)
            row.id, row.created_at = f"file-{name}", made[0].created_at
    for order in ("asc", "desc"):
        seen: list[str] = []
        after, has_more = None, True
        while has_more:
            async with resources.read() as session:
                page = await files.search(
                    session, principal, purpose=None, after=after, limit=3, order="asc" if order == "asc" else "desc"
                )
            seen += [file.id for file in page.rows]
            after, has_more = seen[-1], page.has_more
        assert len(seen) == len(set(seen)) == 8


@pytest.mark.parametrize("key", ["0", "a.b", "ä", "a'b", "$", "a b", "[0]", "%", "A"])
async def test_jobs_are_found_by_their_metadata_exactly(resources: Resources, key: str) -> None:
    principal, _ = await factories.project(resources)
    wanted = await factories.job(resources, principal, job_metadata={key: "Value %_", "other": "x"})
    await factories.job(resources, principal, job_metadata={key: "value %_"})
    await factories.job(resources, principal, job_metadata={key + key: "Value %_", key.swapcase() + "x": "Value %_"})
    await factories.job(resources, principal)
    async with resources.read() as session:
        page = await jobs.search(session, principal, after=None, limit=10, metadata={key: "Value %_"})
    assert [job.id for job in page.rows] == [wanted.id]


async def test_an_event_may_quote_what_no_database_stores(resources: Resources) -> None:
    lease = await held_job(resources)
    async with resources.write() as session:
        job, now = await leases.hold(session, lease)
        principal = factories.Principal("key_x", job.project_id, job.organization_id)
        said = events.add(session, job, "role 'a\0b\ud800'", now=now, data={"role": "a\0b"})
    async with resources.read() as session:
        stored = (await session.execute(scoped(Event, principal).where(Event.id == said.id))).scalar_one()
    assert stored.message == "role 'a\N{REPLACEMENT CHARACTER}b?'"
    assert stored.data == {"role": "a\0b"}


async def test_what_the_columns_cannot_hold_is_refused(resources: Resources) -> None:
    for model_id in ("", "x" * 91, "a b", "a\0b", "é"):
        with pytest.raises(InvalidRequest):
            async with resources.write() as session:
                await base_models.add(session, model_id=model_id, source="/nowhere", facts=FACTS)
    for name in ("", "x" * 65, "a\0b", "a\nb"):
        with pytest.raises(InvalidRequest):
            async with resources.write() as session:
                await keys.add_to_default_project(session, name=name)


async def _sequences(resources: Resources, job_id: str) -> list[int]:
    async with resources.read() as session:
        return [event.sequence for event in await session.scalars(of_job(Event, job_id).order_by(Event.sequence))]


async def _ended(*actions: Awaitable[None]) -> list[BaseException | None]:
    return list(await asyncio.gather(*actions, return_exceptions=True))
