"""Requests that are sent again, where the wire does not reach: at once, and after days."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from app.auth import Principal
from app.db.models import Job
from app.db.queries import scoped
from app.db.retry_models import JobRequest
from app.errors import InvalidRequest
from app.resources import Resources
from app.schemas.jobs import JobCreate
from app.services import keys, retries
from app.services.retries import Attempt, KeyReused
from tests import factories
from worker import sweeps

FIRST = Attempt("a" * 64, retry_count=0)
KEYED = Attempt("a" * 64, idempotency_key="one")


class Asking:
    """A project that posts the same body over and over."""

    def __init__(self, resources: Resources, principal: Principal, training_file: str) -> None:
        self.resources = resources
        self.principal = principal
        self.training_file = training_file

    async def post(self, made: Attempt, *, principal: Principal | None = None) -> tuple[str, bool]:
        body = JobCreate(model=factories.BASE_MODEL, training_file=self.training_file)
        async with self.resources.write() as session:
            job, is_known = await retries.create_job(session, principal or self.principal, made=made, body=body)
        return job.id, is_known

    async def num_jobs(self) -> int:
        async with self.resources.read() as session:
            return len(list(await session.scalars(scoped(Job, self.principal))))

    async def age(self, by: timedelta) -> None:
        async with self.resources.write() as session:
            for row in await session.scalars(select(JobRequest)):
                row.created_at -= by


@pytest.fixture
async def asking(resources: Resources) -> Asking:
    principal, _ = await factories.project(resources)
    await factories.base_model(resources)
    return Asking(resources, principal, (await factories.file(resources, principal)).id)


async def test_twins_with_a_key_are_one_job(asking: Asking) -> None:
    answered = await asyncio.gather(*(asking.post(KEYED) for _ in range(6)))
    assert len({job_id for job_id, _ in answered}) == 1
    assert sorted(is_known for _, is_known in answered) == [False] + [True] * 5
    assert await asking.num_jobs() == 1


async def test_a_repeated_attempt_waits_for_the_one_under_way(asking: Asking) -> None:
    """Which goes on, although the client has lost patience."""
    body = JobCreate(model=factories.BASE_MODEL, training_file=asking.training_file)
    async with asking.resources.write() as session:
        job, _ = await retries.create_job(session, asking.principal, made=FIRST, body=body)
        second = asyncio.create_task(asking.post(replace(FIRST, retry_count=1)))
        await asyncio.sleep(0.1)
        assert not second.done()
    assert await second == (job.id, True)


async def test_a_key_lasts_a_day_and_a_key_of_before_may_be_used_anew(asking: Asking) -> None:
    first, _ = await asking.post(KEYED)
    await asking.age(timedelta(hours=23))
    assert await asking.post(KEYED) == (first, True)
    await asking.age(timedelta(hours=2))
    again, is_known = await asking.post(KEYED)
    assert (again != first, is_known) == (True, False)
    await asking.age(timedelta(hours=25))
    assert (await asking.post(replace(KEYED, body_sha256="b" * 64)))[1] is False


async def test_old_requests_are_swept(asking: Asking) -> None:
    for _ in range(3):
        await asking.post(FIRST)
    await asking.age(timedelta(hours=25))
    kept, _ = await asking.post(KEYED)
    async with asking.resources.write() as session:
        assert await retries.forget_old(session, most=2)
    await asyncio.gather(*(sweeps.forget_requests(asking.resources) for _ in range(2)))
    async with asking.resources.read() as session:
        left = list(await session.scalars(scoped(JobRequest, asking.principal)))
    assert [row.job_id for row in left] == [kept]
    assert await asking.num_jobs() == 4


async def test_a_key_with_another_body_is_refused_and_belongs_to_its_project(
    asking: Asking, resources: Resources
) -> None:
    await asking.post(KEYED)
    with pytest.raises(KeyReused):
        await asking.post(replace(KEYED, body_sha256="b" * 64))
    assert await asking.num_jobs() == 1
    stranger, _ = await factories.project(resources)
    file = await factories.file(resources, stranger)
    other = Asking(resources, stranger, file.id)
    assert (await other.post(replace(KEYED, body_sha256="b" * 64)))[1] is False


async def test_what_was_refused_is_not_remembered(asking: Asking) -> None:
    good, asking.training_file = asking.training_file, "file-unknown"
    with pytest.raises(InvalidRequest, match="does not exist"):
        await asking.post(KEYED)
    asking.training_file = good
    assert (await asking.post(replace(KEYED, body_sha256="b" * 64)))[1] is False


async def test_a_repeated_attempt_gets_the_job_of_the_one_before(asking: Asking) -> None:
    first, _ = await asking.post(FIRST)
    assert await asking.post(replace(FIRST, retry_count=1)) == (first, True)
    assert await asking.post(replace(FIRST, retry_count=2)) == (first, True)
    assert await asking.num_jobs() == 1


async def test_a_first_attempt_always_creates_a_job(asking: Asking) -> None:
    assert (await asking.post(FIRST))[0] != (await asking.post(FIRST))[0]


async def test_two_requests_that_are_alike_and_lost_stay_two(asking: Asking) -> None:
    created = {(await asking.post(FIRST))[0] for _ in range(2)}
    for count in (1, 2):
        assert {(await asking.post(replace(FIRST, retry_count=count)))[0] for _ in range(2)} == created
    assert await asking.num_jobs() == 2


async def test_only_the_same_attempt_is_a_repetition(asking: Asking) -> None:
    again = replace(FIRST, retry_count=1)
    assert not (await asking.post(again))[1]  # the first has never arrived
    assert not (await asking.post(replace(again, body_sha256="b" * 64)))[1]
    async with asking.resources.write() as session:
        other_key = keys.create(
            session, project_id=asking.principal.project_id, name="other", key="sk-hone-of-somebody-else-entirely"
        )
    principal = replace(asking.principal, key_id=other_key.id)
    assert not (await asking.post(again, principal=principal))[1]
    await asking.age(timedelta(minutes=11))
    assert not (await asking.post(replace(again, retry_count=2)))[1]


@pytest.mark.parametrize("given", [[""], ["x" * 256], ["a\tb"], ["é"], ["a", "a"]])
def test_a_bad_key_is_refused(given: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        retries.attempt(b"{}", keys=given, counts=[])


def test_an_attempt_is_told_by_its_headers() -> None:
    assert retries.attempt(b"{}", keys=["k"], counts=["1"]).retry_count is None
    assert retries.attempt(b"{}", keys=[], counts=["2"]).retry_count == 2
    for nonsense in ([], ["-1"], ["x"], ["1", "2"], ["99999"], ["\u0661"]):
        assert retries.attempt(b"{}", keys=[], counts=nonsense).retry_count is None
