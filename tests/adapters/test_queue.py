"""Every queue wakes; none is needed for a job to be found."""

import asyncio
import time

from app.queue.memory import MemoryQueue


async def test_a_wake_ends_the_wait() -> None:
    queue = MemoryQueue()
    waiter = queue.waiter("pool")
    waiting = asyncio.create_task(waiter.wait(30))
    await asyncio.sleep(0)
    await queue.wake("pool")
    await asyncio.wait_for(waiting, 1)


async def test_a_wake_that_comes_between_two_waits_is_not_missed() -> None:
    queue = MemoryQueue()
    waiter = queue.waiter("pool")
    await queue.wake("pool")
    await asyncio.wait_for(waiter.wait(30), 1)


async def test_without_a_wake_the_wait_ends_by_itself() -> None:
    began = time.monotonic()
    await MemoryQueue().waiter("pool").wait(0.05)
    assert time.monotonic() - began >= 0.04


async def test_pools_are_apart_and_a_closed_waiter_is_forgotten() -> None:
    queue = MemoryQueue()
    other, closed = queue.waiter("other"), queue.waiter("pool")
    closed.close()
    await queue.wake("pool")
    began = time.monotonic()
    await asyncio.gather(other.wait(0.05), closed.wait(0.05))
    assert time.monotonic() - began >= 0.04
