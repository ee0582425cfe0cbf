"""Waking inside one process. Processes that share only a database find work by polling it."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable


class MemoryQueue:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._waiters: defaultdict[str, set[MemoryWaiter]] = defaultdict(set)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # by name: how full, and when

    async def wake(self, pool: str) -> None:
        for waiter in self._waiters[pool]:
            waiter.wake()

    def waiter(self, pool: str) -> "MemoryWaiter":
        return MemoryWaiter(self._waiters[pool])

    def is_awaited(self, pool: str) -> bool:
        """Whether somebody waits at this moment: it would look at once."""
        return any(waiter.is_waiting for waiter in self._waiters[pool])

    async def take(self, name: str, per_minute: int) -> float:
        now = self._clock()
        level, since = self._buckets.get(name, (float(per_minute), now))
        level = min(float(per_minute), level + (now - since) * per_minute / 60)
        if level >= 1:
            self._buckets[name] = (level - 1, now)
        return level

    async def problem(self) -> str | None:
        return None


class MemoryWaiter:
    """Remembers a wake that comes while its owner is busy, so that none is missed between two looks."""

    def __init__(self, peers: set["MemoryWaiter"]) -> None:
        self.is_waiting = False
        self._peers = peers
        self._event = asyncio.Event()
        peers.add(self)

    def wake(self) -> None:
        self._event.set()

    async def wait(self, timeout_seconds: float) -> None:
        self.is_waiting = True
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        except TimeoutError:
            pass
        finally:
            self.is_waiting = False
        self._event.clear()

    def close(self) -> None:
        self._peers.discard(self)
