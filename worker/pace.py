"""How long a run's steps take, by the clock: with the evaluations and checkpoints between them."""

import time
from collections import deque
from collections.abc import Callable

_STEPS = 100


class Pace:
    """Told of each step as it is done; `seconds_a_step` is the mean over the last hundred."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done_at: deque[float] = deque(maxlen=_STEPS + 1)
        self._first_seconds = 0.0

    def step(self, seconds: float) -> None:
        """`seconds` is what the step itself took: all that is known when there is only one."""
        if not self._done_at:
            self._first_seconds = seconds
        self._done_at.append(self._clock())

    @property
    def seconds_a_step(self) -> float:
        between = len(self._done_at) - 1
        return (self._done_at[-1] - self._done_at[0]) / between if between > 0 else self._first_seconds
