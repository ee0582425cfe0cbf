"""The limit on requests: a minute's worth at once, and then as fast as it fills."""

import pytest

from app.api.limits import Allowance, duration, take
from app.errors import TooManyRequests
from app.queue.memory import MemoryQueue


async def test_a_minutes_requests_may_come_at_once_and_then_as_the_bucket_fills() -> None:
    now = 0.0
    queue = MemoryQueue(clock=lambda: now)
    left = [await take(queue, "project-a", 120) for _ in range(120)]
    assert (left[0], left[-1]) == (Allowance(120, 119, 0.5), Allowance(120, 0, 60.0))
    for _ in range(2):
        with pytest.raises(TooManyRequests):
            await take(queue, "project-a", 120)
    with pytest.raises(TooManyRequests) as refused:
        await take(queue, "project-a", 120)
    assert refused.value.headers == {
        "x-ratelimit-limit-requests": "120",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "Retry-After": "1",
        "x-should-retry": "true",
    }
    assert (await take(queue, "project-b", 120)).remaining == 119
    now = 0.5  # one has come in, whatever was refused meanwhile
    assert (await take(queue, "project-a", 120)).remaining == 0
    with pytest.raises(TooManyRequests):
        await take(queue, "project-a", 120)
    now = 1000.0
    assert (await take(queue, "project-a", 120)).remaining == 119


async def test_who_may_ask_once_a_minute_is_told_to_wait_for_one() -> None:
    queue = MemoryQueue(clock=lambda: 0.0)
    await take(queue, "project-a", 1)
    with pytest.raises(TooManyRequests) as refused:
        await take(queue, "project-a", 1)
    assert refused.value.headers["Retry-After"] == "60"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0167, "17ms"), (1, "1s"), (5.2, "6s"), (59.5, "1m0s"), (90, "1m30s")]
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
