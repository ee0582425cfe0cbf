"""Waking inside one process. Processes that share only a database find work by polling it."""

import asyncio
from collections import defaultdict


class MemoryQueue:
    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def wake(self, pool: str) -> None:
        for event in self._waiters[pool]:
            event.set()

    def waiter(self, pool: str) -> "MemoryWaiter":
        return MemoryWaiter(self._waiters[pool])


class MemoryWaiter:
    """Remembers a wake that comes while its owner is busy, so that none is missed between two looks."""

    def __init__(self, peers: set[asyncio.Event]) -> None:
        self._peers = peers
        self._event = asyncio.Event()
        peers.add(self._event)

    async def wait(self, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        except TimeoutError:
            pass
        self._event.clear()

    def close(self) -> None:
        self._peers.discard(self._event)
