"""Every queue wakes; none is needed for a job to be found."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr

from app.queue.base import Queue
from app.queue.memory import MemoryQueue
from app.queue.redis import RedisQueue
from tests.servers import required
from tests.servers.redis import RedisServer, running


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    required.skip_without("redis-server")
    with running(tmp_path_factory.mktemp("redis"), password="not/a:secret@all") as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def queue(request: pytest.FixtureRequest) -> AsyncIterator[Queue]:
    if request.param == "memory":
        yield MemoryQueue()
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    server.client().flushall()
    async with RedisQueue(SecretStr(server.url)) as opened:
        yield opened


async def test_a_wake_ends_the_wait(queue: Queue) -> None:
    waiter = queue.waiter("pool")
    waiting = asyncio.create_task(waiter.wait(30))
    await asyncio.sleep(0)
    await queue.wake("pool")
    await asyncio.wait_for(waiting, 1)


async def test_a_wake_that_comes_between_two_waits_is_not_missed(queue: Queue) -> None:
    waiter = queue.waiter("pool")
    await queue.wake("pool")
    await asyncio.wait_for(waiter.wait(30), 1)


async def test_without_a_wake_the_wait_ends_by_itself(queue: Queue) -> None:
    began = time.monotonic()
    await queue.waiter("pool").wait(0.05)
    assert time.monotonic() - began >= 0.04


async def test_pools_are_apart_and_a_closed_waiter_is_forgotten(queue: Queue) -> None:
    other, closed = queue.waiter("other"), queue.waiter("pool")
    closed.close()
    await queue.wake("pool")
    began = time.monotonic()
    await asyncio.gather(other.wait(0.4), closed.wait(0.4))
    assert time.monotonic() - began >= 0.39


async def test_all_who_wait_on_a_pool_are_woken(queue: Queue) -> None:
    waiters = [queue.waiter("pool") for _ in range(3)]
    waiting = asyncio.gather(*(waiter.wait(30) for waiter in waiters))
    await asyncio.sleep(0)
    await queue.wake("pool")
    await asyncio.wait_for(waiting, 1)


async def test_a_queue_that_works_has_no_problem(queue: Queue) -> None:
    assert await queue.problem() is None
