"""What processes tell each other: wakes, which are a hint that there may be work, and how many requests have come.

The database says what the work is; a lost wake costs a second.
"""

from typing import Protocol

# Who trains waits on the name of its pool; who checks files waits on this one.
VALIDATION_POOL = "cpu"


class Waiter(Protocol):
    async def wait(self, timeout_seconds: float) -> None:
        """Return at a wake that came since the last return, or after the timeout."""
        ...

    def close(self) -> None: ...


class Queue(Protocol):
    async def wake(self, pool: str) -> None:
        """Wake whoever waits on `pool`, without waiting for it to happen. Names no job, may be lost, never raises."""
        ...

    def waiter(self, pool: str) -> Waiter:
        """Whoever holds it is woken when there may be work for `pool`, whichever process says so."""
        ...

    async def take(self, name: str, per_minute: int) -> float:
        """Take one from a bucket that holds `per_minute` and fills evenly. Returns how full it was before.

        If that is less than one, nothing was taken. Never raises; between processes as well as can be.
        """
        ...

    async def problem(self) -> str | None:
        """Why waking between processes does not work now, for whoever runs the server; None if it does."""
        ...
