"""Waking across processes: an arq job named `wake`, which says of a pool that it may have work and nothing else.
And counting across processes: buckets that a script takes from.

Redis holds no truth here. A wake that is lost, late or doubled only changes how soon somebody looks, so
every failure is met in the same way: it is told once, and work is found by polling until Redis answers again.
Nobody waits for Redis: wakes are sent and heard by tasks of this file's own.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from arq.connections import ArqRedis
from arq.worker import Worker, func
from pydantic import SecretStr
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.queue.memory import MemoryQueue, MemoryWaiter

_log = logging.getLogger(__name__)
_SOCKET_SECONDS = 2.0  # arq's own pool has no limit, and hangs for as long as a Redis that does not answer
_ASK_SECONDS = 1.0
_LOOK_SECONDS = 0.1  # costs under a hundredth of a core, where a slot waits
_WAKE_SECONDS = 10.0  # a wake that nobody took by then is no news: slots look each second by themselves
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 5.0
_LAST_WORDS_SECONDS = 0.3
_MOST_UNSENT = 100
_COUNT_SECONDS = 0.05  # a request waits no longer for its number
_FAILURES = (RedisError, OSError)
# By Redis' own clock. After a minute without a request a bucket is full, which is what one that is gone is.
_TAKE = """
local bucket = redis.call('HMGET', KEYS[1], 'level', 'since')
local time = redis.call('TIME')
local now, most = time[1] + time[2] / 1000000, tonumber(ARGV[1])
local level = most
if bucket[1] then
    level = math.min(most, bucket[1] + math.max(0, now - bucket[2]) * most / 60)
end
if level >= 1 then
    redis.call('HSET', KEYS[1], 'level', level - 1, 'since', string.format('%.6f', now))
    redis.call('PEXPIRE', KEYS[1], 61000)
end
return tostring(level)
"""


class RedisQueue:
    """An async context; what it has started ends with it."""

    def __init__(self, url: SecretStr) -> None:
        self._url = url
        self._here = MemoryQueue()
        self._unsent: asyncio.Queue[str] = asyncio.Queue(_MOST_UNSENT)
        self._sending = _Connection("waking other workers")
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._counting = _Connection("counting requests", meanwhile="each process counts for itself")
        self._counter: _Counter | None = None
        self._counter_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "RedisQueue":
        self._sender = asyncio.create_task(_persist(self._send, self._sending))
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._sending.is_broken:
            with suppress(TimeoutError):
                async with asyncio.timeout(_ASK_SECONDS):
                    await self._unsent.join()
        counting = {self._counter_task} if self._counter_task else set[asyncio.Task[None]]()
        await _end({self._sender, *self._tasks.values(), *counting})

    async def wake(self, pool: str) -> None:
        await self._here.wake(pool)
        with suppress(asyncio.QueueFull):  # enough wakes are on their way
            self._unsent.put_nowait(pool)

    def waiter(self, pool: str) -> MemoryWaiter:
        if pool not in self._tasks:
            connection = _Connection(f"hearing wakes for pool {pool}")
            self._tasks[pool] = asyncio.create_task(_persist(partial(self._hear, pool, connection), connection))
        return self._here.waiter(pool)

    async def take(self, name: str, per_minute: int) -> float:
        """This process counts for itself as well: while Redis is away or slow, and until it is connected, that is all
        that is counted, and nobody has more at either change than was left.
        """
        if self._counter_task is None:
            self._counter_task = asyncio.create_task(_persist(self._keep_counting, self._counting))
        counter = self._counter
        if counter is not None:
            try:
                async with asyncio.timeout(_COUNT_SECONDS):
                    script: Any = counter.redis.eval(_TAKE, 1, f"hone:requests:{name}", str(per_minute))
                    level = float(await script)
                if level < 1:
                    return level
                return min(level, await self._here.take(name, per_minute))
            except (*_FAILURES, TimeoutError, ValueError) as error:
                if not counter.failure.done():
                    counter.failure.set_exception(error)
        return await self._here.take(name, per_minute)

    async def problem(self) -> str | None:
        try:
            async with asyncio.timeout(_ASK_SECONDS), _open(self._url) as redis:
                await redis.ping()
        except TimeoutError:
            return f"no answer within {_ASK_SECONDS:g} second"
        except _FAILURES as error:
            return str(error)
        return None

    async def _keep_counting(self) -> None:
        """Connects where no request waits for it. Ends by failing, as soon as a request has found that Redis does."""
        async with _open(self._url) as redis:
            await redis.ping()
            self._counting.works()
            self._counter = _Counter(redis, asyncio.get_running_loop().create_future())
            try:
                await self._counter.failure
            finally:
                self._counter = None

    async def _send(self) -> None:
        async with _open(self._url) as redis:
            while True:
                pool = await self._unsent.get()
                try:
                    await redis.enqueue_job("wake", _queue_name=_queue_name(pool), _expires=_WAKE_SECONDS)
                    await _forget_old(redis, pool)
                finally:
                    self._unsent.task_done()
                self._sending.works()

    async def _hear(self, pool: str, connection: "_Connection") -> None:
        async def wake(ctx: dict[Any, Any]) -> None:  # noqa: ARG001  arq gives it by this name
            await self._here.wake(pool)

        async with _open(self._url) as redis:
            await _forget_old(redis, pool)
            listener = _Listener(
                [func(wake, name="wake")],
                queue_name=_queue_name(pool),
                redis_pool=redis,
                handle_signals=False,
                max_jobs=1,  # one wake a look: another waits for who is still idle at the next
                max_tries=2,
                job_timeout=_WAKE_SECONDS,
                keep_result=0,
                poll_delay=_LOOK_SECONDS,
                job_serializer=_write,
                job_deserializer=_read,
            )
            listener.is_awaited = partial(self._here.is_awaited, pool)
            listener.looked = connection.works
            try:
                await listener.main()
            finally:
                if listener.tasks:  # arq shields the end of a job, which would go on with a client that is closed
                    await asyncio.wait(listener.tasks.values(), timeout=_LAST_WORDS_SECONDS)
                await _end({*listener.tasks.values()})


@dataclass(frozen=True)
class _Counter:
    redis: ArqRedis
    failure: "asyncio.Future[None]"


class _Listener(Worker):
    """Takes wakes only while somebody here waits for one: a busy worker leaves them to an idle one."""

    is_awaited: Callable[[], bool]
    looked: Callable[[], None]

    @property
    def allow_pick_jobs(self) -> bool:
        return self.is_awaited()

    @allow_pick_jobs.setter
    def allow_pick_jobs(self, _: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """arq's own constructor sets it."""

    async def heart_beat(self) -> None:
        """The end of each look that went well."""
        await super().heart_beat()
        self.looked()


class _Connection:
    """Whether one use of Redis works. A change is told once; pauses between attempts grow while it does not."""

    def __init__(self, use: str, *, meanwhile: str = "work is found by polling") -> None:
        self._use = use
        self._meanwhile = meanwhile
        self._failures = 0

    @property
    def is_broken(self) -> bool:
        return self._failures > 0

    @property
    def pause_seconds(self) -> float:
        return min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(self._failures, 10))

    def works(self) -> None:
        if self._failures:
            _log.warning("Redis works again: %s", self._use)
        self._failures = 0

    def failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            unforeseen = None if isinstance(error, (*_FAILURES, TimeoutError)) else error
            text = "%s: Redis does not work (%s: %s); until it does, %s"
            _log.warning(text, self._use, type(error).__name__, error, self._meanwhile, exc_info=unforeseen)


async def _persist(use: Callable[[], Coroutine[Any, Any, None]], connection: _Connection) -> None:
    """Keep up a use of Redis, which ends only by failing, until cancelled."""
    while True:
        try:
            await use()
        except Exception as error:  # whatever goes wrong with waking, it must not end a worker
            connection.failed(error)
        await asyncio.sleep(connection.pause_seconds)


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel until it is so: `asyncio.wait_for` of Python 3.11, which redis-py uses, can swallow a cancellation."""
    while tasks:
        for task in tasks:
            task.cancel()
        ended, tasks = await asyncio.wait(tasks, timeout=2 * _LAST_WORDS_SECONDS)
        for task in ended:
            if not task.cancelled():
                task.exception()  # taken note of: nobody is there any more to whom it would matter


@asynccontextmanager
async def _open(url: SecretStr) -> AsyncIterator[ArqRedis]:
    """A client whose every command ends within the socket's limits. A broken one is not mended but opened anew."""
    pool = ConnectionPool.from_url(
        url.get_secret_value(),
        socket_timeout=_SOCKET_SECONDS,
        socket_connect_timeout=_SOCKET_SECONDS,
        retry=Retry(NoBackoff(), 1),  # for a connection that has gone stale in between
        retry_on_error=[RedisConnectionError, RedisTimeoutError, OSError],  # a refused connect is an OSError
    )
    redis = ArqRedis(pool_or_conn=pool, job_serializer=_write, job_deserializer=_read)
    try:
        yield redis
    finally:
        # Not `aclose`: it waits, and a second cancellation that comes meanwhile would leave connections open.
        for connection in (*pool._available_connections, *pool._in_use_connections):
            with suppress(*_FAILURES):
                await connection.disconnect(nowait=True)


async def _forget_old(redis: ArqRedis, pool: str) -> None:
    """Without it, the wakes of a pool that no worker serves would pile up."""
    await redis.zremrangebyscore(_queue_name(pool), "-inf", (time.time() - _WAKE_SECONDS) * 1000)


def _queue_name(pool: str) -> str:
    return f"hone:wake:{pool}"


def _write(job: dict[str, Any]) -> bytes:
    """JSON, where arq's default is pickle: who can write to Redis could run code in every worker."""
    return json.dumps(job, default=str).encode()


def _read(raw: bytes) -> dict[str, Any]:
    """Of a job only its name is believed. Raises ValueError for anything but a wake; arq then drops it."""
    job = json.loads(raw)
    if not isinstance(job, dict) or job.get("f") != "wake":
        raise ValueError("not a wake")
    return {"f": "wake", "a": [], "k": {}, "t": None, "et": 0}
