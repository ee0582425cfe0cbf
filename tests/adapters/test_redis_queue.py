"""What only a queue on Redis must do: reach other processes, live through what befalls Redis, and run nothing else."""

import asyncio
import json
import logging
import pickle
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from app.queue.base import Waiter
from app.queue.memory import MemoryWaiter
from app.queue.redis import RedisQueue
from app.settings import Settings
from tests.servers import required
from tests.servers.redis import RedisServer, running

PASSWORD = "hunter2/of:the@test"
SOON = 8.0  # a wake takes a tenth of a second, and far longer where the machine is busy


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    required.skip_without("redis-server")
    with running(tmp_path / "redis", password=PASSWORD) as started:
        yield started


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost, signed by itself, and its key in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run(["openssl", *request, "-keyout", key, "-out", made], check=True, capture_output=True)
    made.write_bytes(made.read_bytes() + key.read_bytes())
    return made


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisQueue]:
    async with RedisQueue(SecretStr(url)) as queue:
        yield queue


async def is_woken(waiter: Waiter, *, seconds: float = SOON) -> bool:
    began = time.monotonic()
    await waiter.wait(seconds)
    return time.monotonic() - began < seconds - 0.05


async def wait_until_woken(sender: RedisQueue, waiter: Waiter, *, seconds: float = 15) -> None:
    """Wake again and again: those that fall into an outage are lost."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        await sender.wake("pool")
        if await is_woken(waiter, seconds=0.5):
            return
    raise AssertionError("no wake arrived")


@pytest.mark.parametrize("way", ["url", "socket_url"])
async def test_a_wake_reaches_another_process(server: RedisServer, way: str) -> None:
    url = getattr(server, way)
    async with opened(url) as here, opened(url) as there:
        waiter = there.waiter("gpu-a")
        await here.wake("gpu-a")
        assert await is_woken(waiter)
        await here.wake("gpu-b")
        assert not await is_woken(waiter, seconds=0.6)


async def test_a_wake_travels_through_tls_and_the_server_is_verified(certificate: Path, tmp_path: Path) -> None:
    required.skip_without("redis-server")
    with running(tmp_path / "redis", password=PASSWORD, certificate=certificate) as server:
        url = server.url_through(server.tls_port).replace("redis://", "rediss://").replace("127.0.0.1", "localhost")
        trusting = f"{url}?ssl_ca_certs={certificate}"
        async with opened(trusting) as here, opened(trusting) as there:
            waiter = there.waiter("pool")
            await here.wake("pool")
            assert await is_woken(waiter)
        async with opened(url) as strict:
            assert "CERTIFICATE_VERIFY_FAILED" in (await strict.problem() or "")


async def test_a_busy_worker_leaves_wakes_to_an_idle_one(server: RedisServer) -> None:
    async with opened(server.url) as api, opened(server.url) as busy, opened(server.url) as idle:
        nobody = busy.waiter("pool")
        waiter = idle.waiter("pool")
        for _ in range(5):
            await api.wake("pool")
            assert await is_woken(waiter)
        assert isinstance(nobody, MemoryWaiter)
        assert not await is_woken(nobody, seconds=0.05)


async def test_wakes_that_nobody_takes_do_not_pile_up(server: RedisServer) -> None:
    with server.client() as client:
        long_ago = {f"old-{number}": 1.0 for number in range(1000)}
        client.zadd("hone:wake:pool", long_ago)
        async with opened(server.url) as queue:
            await queue.wake("pool")
        assert client.zcard("hone:wake:pool") == 1
        assert {client.ttl(key) for key in client.scan_iter("arq:job:*")} <= {*range(1, 11)}


async def test_jobs_are_json_and_nothing_of_them_is_kept(server: RedisServer) -> None:
    with server.client() as client:
        async with opened(server.url) as queue:
            await queue.wake("pool")
        (key,) = client.scan_iter("arq:job:*")
        assert json.loads(str(client.get(key), "utf-8"))["f"] == "wake"  # pyright: ignore
        async with opened(server.url) as queue:
            assert await is_woken(queue.waiter("pool"))
            deadline = time.monotonic() + 5
            while left := {*client.scan_iter("arq:*")} | {*client.scan_iter("hone:wake:pool")}:
                assert time.monotonic() < deadline, left
                await asyncio.sleep(0.05)


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self):
        return (Path.touch, (self._mark,))


async def test_a_pickle_is_dropped_and_never_read(server: RedisServer, tmp_path: Path) -> None:
    mark = tmp_path / "exploded"
    pickled = pickle.dumps({"f": "wake", "a": (Bomb(mark),), "k": {}, "t": None, "et": 0})
    pickle.loads(pickled)
    assert mark.exists(), "the bomb is no bomb"
    mark.unlink()
    others = [
        b"\x80\x05.",
        b"null",
        b'{"f": "wake"',
        b'{"f": "os.system", "a": ["true"], "k": {}, "t": null, "et": 0}',
        b"[" * 100_000,
        b'{"f": "wake", "et": 1' + b"0" * 5000 + b"}",
    ]
    with server.client() as client:
        for number, job in enumerate([pickled, *others]):
            client.set(f"arq:job:{number}", job)
            client.zadd("hone:wake:pool", {str(number): time.time() * 1000})
        async with opened(server.url) as queue:
            waiter = queue.waiter("pool")
            deadline = time.monotonic() + 10
            while client.zcard("hone:wake:pool"):
                assert time.monotonic() < deadline
                assert not await is_woken(waiter, seconds=0.3)
            assert not mark.exists()
            assert not list(client.scan_iter("arq:*"))
            async with opened(server.url) as sender:
                await sender.wake("pool")
                assert await is_woken(waiter)


@pytest.mark.parametrize("fault", ["killed", "flushed", "frozen", "away at start"])
async def test_wakes_arrive_again_after(server: RedisServer, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    if fault == "away at start":
        server.kill()
    async with opened(server.url) as api, opened(server.url) as worker:
        waiter = worker.waiter("pool")
        if fault != "away at start":
            await wait_until_woken(api, waiter)
        if fault == "killed":
            server.kill()
        elif fault == "frozen":
            server.freeze()
        elif fault == "flushed":
            with server.client() as client:
                client.flushall()
        if fault != "flushed":
            until = time.monotonic() + 5
            while time.monotonic() < until:
                began = time.monotonic()
                await api.wake("pool")
                assert time.monotonic() - began < 0.2
                await waiter.wait(0.1)
        if fault == "frozen":
            server.thaw()
        elif fault != "flushed":
            server.start()
        await wait_until_woken(api, waiter)
        if fault != "flushed":  # what hears says so at the end of the look that found the wake
            until = time.monotonic() + 10
            while sum("works again" in told for told in caplog.messages) < 2 and time.monotonic() < until:
                await waiter.wait(0.1)
    ours = [record.getMessage() for record in caplog.records if record.name == "app.queue.redis"]
    assert PASSWORD not in "".join(ours)
    if fault == "flushed":
        assert ours == []
    else:
        told = [message.partition(" (")[0] for message in ours]
        assert told.count("hearing wakes for pool pool: Redis does not work") == 1
        assert told.count("waking other workers: Redis does not work") == 1
        assert told.count("Redis works again: hearing wakes for pool pool") == 1
        assert told.count("Redis works again: waking other workers") == 1


async def test_a_queue_on_a_frozen_redis_closes_at_once(server: RedisServer) -> None:
    queue = RedisQueue(SecretStr(server.url))
    async with queue:
        await wait_until_woken(queue, queue.waiter("pool"))
        server.freeze()
        await queue.wake("pool")
        began = time.monotonic()
    assert time.monotonic() - began < 3


async def test_what_cannot_be_foreseen_ends_nothing_and_is_told_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else's data lies where our queue should be."""
    with server.client() as client:
        client.set("hone:wake:pool", "not a queue")
        async with opened(server.url) as api, opened(server.url) as worker:
            waiter = worker.waiter("pool")
            assert not await is_woken(waiter, seconds=2)
            assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
            client.delete("hone:wake:pool")
            await wait_until_woken(api, waiter)


async def test_what_is_wrong_is_said_without_the_password(server: RedisServer) -> None:
    async with opened(server.url.replace("hunter2", "hunter3")) as queue:
        problem = await queue.problem()
        assert problem is not None
        assert "password" in problem
        assert "hunter" not in problem
    async with opened(server.url) as queue:
        assert await queue.problem() is None
        server.freeze()
        assert await queue.problem() == "no answer within 1 second"
        server.kill()
        assert "connecting to 127.0.0.1" in (await queue.problem() or "")


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://:pass%2Fword@localhost:6379/3",
        "rediss://user:pass@redis.internal:6380",
        "unix:///run/redis.sock?db=1",
        "redis://[::1]:6379",
    ],
)
def test_good_urls_are_taken(url: str) -> None:
    assert Settings(redis_url=SecretStr(url)).redis_url == SecretStr(url)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost",
        "redis://",
        "redis://:hunter2/3@localhost",
        "redis://:hunter2@localhost/x",
        "unix://",
    ],
)
def test_bad_urls_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(redis_url=SecretStr(url))
    (fault,) = caught.value.errors()
    assert "hunter2" not in fault["msg"]
    assert "expected redis://" in fault["msg"]


def test_settings_do_not_show_the_url() -> None:
    settings = Settings(redis_url=SecretStr("redis://:hunter2@localhost"))
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()


async def counted_in_redis(queue: RedisQueue, server: RedisServer, name: str) -> None:
    """Take until Redis has seen it: a process connects where no request waits for it."""
    deadline = time.monotonic() + 15
    with server.client() as client:
        while not client.exists(f"hone:requests:{name}"):
            assert time.monotonic() < deadline
            await queue.take(name, 1000)
            await asyncio.sleep(0.05)


async def test_processes_count_requests_together_and_each_for_itself_while_redis_is_away(server: RedisServer) -> None:
    async with opened(server.url) as one, opened(server.url) as other:
        await counted_in_redis(one, server, "warm-one")
        await counted_in_redis(other, server, "warm-other")
        levels = [await queue.take("project-a", 6) for queue in (one, other, one, other, one, other, one, other)]
        assert sum(level >= 1 for level in levels) == 6
        server.freeze()
        began = time.monotonic()
        alone = [await one.take("project-a", 6) for _ in range(8)]
        assert time.monotonic() - began < 2
        assert sum(level >= 1 for level in alone) == 3  # what this process has let through is counted already
        server.thaw()
        await counted_in_redis(one, server, "again")


async def test_what_a_process_has_counted_before_it_was_connected_is_not_forgotten(server: RedisServer) -> None:
    async with opened(server.url) as queue:
        assert await queue.take("project-a", 2) >= 1
        await counted_in_redis(queue, server, "warm")
        assert await queue.take("project-a", 2) >= 1
        assert await queue.take("project-a", 2) < 1
