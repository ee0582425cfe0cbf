"""How many requests a project may make in a minute, all its keys together; the queue counts them."""

import math
from dataclasses import dataclass

from app.errors import TooManyRequests
from app.queue.base import Queue


@dataclass(frozen=True)
class Allowance:
    """What a project has left, as OpenAI's headers tell it."""

    limit: int
    remaining: int
    reset_seconds: float  # until all of it is there again

    def headers(self) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": duration(self.reset_seconds),
        }


async def take(queue: Queue, name: str, per_minute: int) -> Allowance:
    """Count a request. Raises TooManyRequests, which counts nothing, so that who waits is served."""
    level = await queue.take(name, per_minute)
    per_second = per_minute / 60
    if level < 1:
        sentence = (
            f"Rate limit reached: the project's limit 'requests_per_minute' is {per_minute}, and 0 are left. "
            "Please try again later."
        )
        headers = _allowance(level, per_minute).headers()
        raise TooManyRequests(sentence, retry_after_seconds=(1 - level) / per_second, headers=headers)
    return _allowance(level - 1, per_minute)


def _allowance(level: float, per_minute: int) -> Allowance:
    return Allowance(per_minute, math.floor(level), (per_minute - level) * 60 / per_minute)


def duration(seconds: float) -> str:
    """As OpenAI writes it: "17ms", "6s", "1m30s"."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
