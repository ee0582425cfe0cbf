"""The limit on requests: a minute's worth at once, and then as fast as it fills."""

import pytest

from app.api.limits import Allowance, Limiter, duration
from app.errors import TooManyRequests


def test_a_minutes_requests_may_come_at_once_and_then_as_the_bucket_fills() -> None:
    now = 0.0
    limiter = Limiter(120, clock=lambda: now)
    left = [limiter.take("key-a") for _ in range(120)]
    assert (left[0], left[-1]) == (Allowance(120, 119, 0.5), Allowance(120, 0, 60.0))
    for _ in range(2):
        with pytest.raises(TooManyRequests):
            limiter.take("key-a")
    with pytest.raises(TooManyRequests) as refused:
        limiter.take("key-a")
    assert refused.value.headers == {
        "x-ratelimit-limit-requests": "120",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "Retry-After": "1",
        "x-should-retry": "true",
    }
    assert limiter.take("key-b").remaining == 119
    now = 0.5  # one has come in, whatever was refused meanwhile
    assert limiter.take("key-a").remaining == 0
    with pytest.raises(TooManyRequests):
        limiter.take("key-a")
    now = 1000.0
    assert limiter.take("key-a").remaining == 119


def test_who_may_ask_once_a_minute_is_told_to_wait_for_one() -> None:
    limiter = Limiter(1, clock=lambda: 0.0)
    limiter.take("key-a")
    with pytest.raises(TooManyRequests) as refused:
        limiter.take("key-a")
    assert refused.value.headers["Retry-After"] == "60"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0167, "17ms"), (1, "1s"), (5.2, "6s"), (59.5, "1m0s"), (90, "1m30s")]
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
