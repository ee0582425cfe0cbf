"""Waking inside one process. Processes that share only a database find work by polling it."""

import asyncio
from collections import defaultdict


class MemoryQueue:
    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[MemoryWaiter]] = defaultdict(set)

    async def wake(self, pool: str) -> None:
        for waiter in self._waiters[pool]:
            waiter.wake()

    def waiter(self, pool: str) -> "MemoryWaiter":
        return MemoryWaiter(self._waiters[pool])

    def is_awaited(self, pool: str) -> bool:
        """Whether somebody waits at this moment: it would look at once."""
        return any(waiter.is_waiting for waiter in self._waiters[pool])

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
