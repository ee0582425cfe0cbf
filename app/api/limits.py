"""How many requests an API key may make in a minute: counted here, so by each server process for itself."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import TooManyRequests


@dataclass(frozen=True)
class Allowance:
    """What a key has left, as OpenAI's headers tell it."""

    limit: int
    remaining: int
    reset_seconds: float  # until all of it is there again

    def headers(self) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": duration(self.reset_seconds),
        }


class Limiter:
    """A bucket for each key that asks, which holds a minute's requests and fills evenly."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = per_minute
        self._per_second = per_minute / 60
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # by key id: how full, and when

    def take(self, key_id: str) -> Allowance:
        """Count a request. Raises TooManyRequests, which counts nothing, so that who waits is served."""
        now = self._clock()
        level, since = self._buckets.get(key_id, (float(self._limit), now))
        level = min(self._limit, level + (now - since) * self._per_second)
        if level < 1:
            sentence = f"Rate limit reached: {self._limit} requests a minute. Please try again later."
            headers = self._allowance(level).headers()
            raise TooManyRequests(sentence, retry_after_seconds=(1 - level) / self._per_second, headers=headers)
        self._buckets[key_id] = (level - 1, now)
        return self._allowance(level - 1)

    def _allowance(self, level: float) -> Allowance:
        return Allowance(self._limit, math.floor(level), (self._limit - level) / self._per_second)


def duration(seconds: float) -> str:
    """As OpenAI writes it: "17ms", "6s", "1m30s"."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
