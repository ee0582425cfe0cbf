"""Hostile Python graders, in each kind of sandbox that this machine has."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers import required
from worker.graders import sandbox
from worker.graders.faults import GraderFault
from worker.graders.sandbox import Limits, Sandbox

LIMITS = Limits(seconds=4, memory_bytes=512 << 20)
GRADE = "def grade(sample, item):\n    "


@pytest.fixture(params=[sandbox.bubblewrap, sandbox.other_user])
async def box(request: pytest.FixtureRequest) -> Sandbox:
    if request.param is sandbox.bubblewrap:
        required.skip_without("bubblewrap")
    built = request.param(LIMITS)
    if built is None:
        pytest.skip("only root can make namespaces for another user")
    try:
        await built.grade(f"import socket\n{GRADE}return 1", {}, {})
    except GraderFault as fault:
        if built.way == "bubblewrap":
            raise
        pytest.skip(f"this machine's Python is not for other users: {fault.sentence[-100:]}")
    return built


async def fault_of(box: Sandbox, source: str) -> GraderFault:
    with pytest.raises(GraderFault) as caught:
        await box.grade(source, {"output_text": "x"}, {})
    return caught.value


async def test_a_grader_gets_sample_and_item(box: Sandbox) -> None:
    source = f"import numpy\n{GRADE}print('x' * 100000); return numpy.float32(len(sample['output_text']) / item['n'])"
    assert await box.grade(source, {"output_text": "abc"}, {"n": 4}) == 0.75


async def test_there_is_no_network(box: Sandbox) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        there = await fault_of(box, f"import socket\n{GRADE}socket.create_connection(('127.0.0.1', {port}), 1)")
    assert "Error" in there.sentence


async def test_there_are_no_secrets(box: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HONE_API_KEY", "a-secret-of-the-server")
    secret = tmp_path / "hone.db"
    secret.write_text("a-secret-of-the-server")
    os.chmod(tmp_path, 0o700)  # noqa: PTH101 - as the data directory
    shown = await fault_of(box, f"import os\n{GRADE}raise ValueError(str(dict(os.environ)) + str(os.listdir('/proc')))")
    assert "HONE" not in shown.sentence
    assert str(os.getpid()) not in shown.sentence.partition("ValueError")[2]
    for path in (secret, "/etc/shadow", "/proc/1/environ", "/proc/1/mem", "/root/.bashrc"):
        fault = await fault_of(box, f"{GRADE}raise SystemError(open({str(path)!r}).read())")
        assert "SystemError" not in fault.sentence.rpartition("\n")[2] or path == "/proc/1/environ"
        assert "a-secret" not in fault.sentence


async def test_nothing_can_be_written(box: Sandbox) -> None:
    for path in ("/tmp/x", "/x", "/dev/shm/x", "/var/tmp/x", sandbox.__file__):
        fault = await fault_of(box, f"{GRADE}open({path!r}, 'w').write('x')")
        assert "Error" in fault.sentence


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="the filter knows two machines' numbers")
@pytest.mark.parametrize(
    "call",
    [
        *("libc.socket(1, 1, 0)", "libc.socket(2, 1, 0)", "libc.socket(16, 3, 0)"),  # Unix, IPv4, netlink
        *("os.memfd_create('m')", "libc.shmget(0, 4096, 0o1600)", "libc.unshare(0x10000000)", "libc.ptrace(0, 0, 0)"),
    ],
)
async def test_doors_into_the_kernel_are_shut(box: Sandbox, call: str) -> None:
    setup = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    source = f"{setup}{GRADE}{call}; raise OSError(ctypes.get_errno(), 'as told by errno')"
    assert "[Errno 1]" in (await fault_of(box, source)).sentence


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (f"import os\n{GRADE}while True: os.fork()", "BlockingIOError"),
        (f"import threading\n{GRADE}threading.Thread(target=print).start()", "can't start new thread"),
        (f"{GRADE}bytearray(1 << 30)", "MemoryError"),
        (f"{GRADE}return 1 / 0", "ZeroDivisionError"),
        (f"{GRADE}return 'good'", "not a finite number"),
        (f"{GRADE}return float('nan')", "not a finite number"),
        (f"{GRADE}return float('inf')", "not a finite number"),
        (f"{GRADE}return 'nan'", "not a finite number"),
        ("x = 1", "must define a function grade"),
        ("def grade(:", "SyntaxError"),
        (f"{GRADE}raise SystemExit(0)", "SystemExit"),
        (f"import os\n{GRADE}os._exit(0)", "ended before"),
        (f"import os\n{GRADE}os.kill(os.getpid(), 9)", "ended before"),
        (f"import os\n{GRADE}while True: os.write(3, b'x' * 65536)", "ended before"),
        (f"import sys\n{GRADE}sys.setrecursionlimit(10**9); return (f := lambda n: f(n + 1))(0)", ""),
        (f"class E(Exception):\n    def __str__(self): raise E\n{GRADE}raise E", "E"),
    ],
)
async def test_each_bad_end_is_told(box: Sandbox, source: str, said: str) -> None:
    fault = await fault_of(box, source)
    assert fault.flags[0] == "python_grader_runtime_error"
    assert said in fault.sentence
    assert len(fault.sentence) <= 2000


@pytest.mark.parametrize("reward", ["NaN", "Infinity", "1e999", '"nan"', "true", "null", "[1]"])
async def test_a_reward_that_the_grader_writes_itself_must_be_a_finite_number(box: Sandbox, reward: str) -> None:
    answer = f'{{"reward": {reward}}}'.encode()
    source = f"import os\n{GRADE}\n    for n in range(3, 64):\n        try: os.write(n, {answer!r})\n"
    source += "        except OSError: pass\n    os._exit(0)"
    fault = await fault_of(box, source)
    assert fault.flags == ("python_grader_runtime_error",)
    assert "ended before" in fault.sentence


async def test_a_grader_cannot_leave_its_session_to_stay(box: Sandbox) -> None:
    quick = Sandbox(box.way, box.command, box.uid, Limits(seconds=1, memory_bytes=LIMITS.memory_bytes))
    name = f"g{uuid4().hex[:12]}"
    began = time.monotonic()
    fault = await fault_of(quick, _leaving(name))
    assert "unresponsive_reward_error" in fault.flags
    assert time.monotonic() - began < 15
    await _gone(name)


async def test_a_grader_ends_with_a_worker_that_is_killed(box: Sandbox) -> None:
    name = f"g{uuid4().hex[:12]}"
    worker = (
        "import asyncio, sys\nfrom worker.graders.sandbox import *\n"
        "limits = Limits(seconds=60, memory_bytes=512 << 20)\n"
        f"asyncio.run({box.way}(limits).grade(sys.argv[1], {{}}, {{}}))"
    )
    root = Path(sandbox.__file__).parents[2]
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", worker, _leaving(name), cwd=root)
    try:
        await _until(lambda: bool(_named(name)))
    finally:
        child.kill()
        await child.wait()
    await _gone(name)


async def test_what_holds_the_pipes_is_not_waited_for() -> None:
    """A sandbox that lets something out, which none of ours does."""
    name = f"g{uuid4().hex[:12]}"
    shell = ("/bin/sh", "-c", 'setsid sleep 20 & exec "$@"', name)
    leaky = Sandbox("bubblewrap", shell, None, Limits(seconds=1, memory_bytes=LIMITS.memory_bytes))
    began = time.monotonic()
    with pytest.raises(GraderFault, match="did not end"):
        await leaky.grade(f"import time\n{GRADE}time.sleep(60)", {}, {})
    assert time.monotonic() - began < 15


async def test_a_grader_ends_at_the_deadline_with_all_it_started(box: Sandbox) -> None:
    quick = Sandbox(box.way, box.command, box.uid, Limits(seconds=1, memory_bytes=LIMITS.memory_bytes))
    for body in ("while True: pass", "import time; time.sleep(60)"):
        began = time.monotonic()
        fault = await fault_of(quick, GRADE + body)
        assert "unresponsive_reward_error" in fault.flags
        assert time.monotonic() - began < 15
    assert _graders() == []


async def test_a_grader_ends_with_whoever_waited(box: Sandbox) -> None:
    waiting = asyncio.create_task(box.grade(f"import time\n{GRADE}time.sleep(60)", {}, {}))
    await asyncio.sleep(0.3)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 15)


async def test_the_way_that_was_chosen_is_taken(box: Sandbox, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)  # noqa: PTH101 - as the data directory
    found = await sandbox.find(LIMITS, way=box.way, secret=tmp_path)
    assert found == box


async def test_without_bubblewrap_there_is_no_second_best(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await sandbox.find(LIMITS, way="bubblewrap", secret=tmp_path) is None
    assert "HONE_PYTHON_GRADER_SANDBOX=bubblewrap needs bubblewrap to be installed" in caplog.text


async def test_a_directory_that_a_grader_sees_is_no_secret(box: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    assert await sandbox.find(LIMITS, way=box.way, secret=Path("/usr/lib")) is None
    assert "does not keep them from the network or /usr/lib" in caplog.text


def _leaving(name: str) -> str:
    """A grader with this name among the processes, in a session of its own."""
    return (
        f"import ctypes, os, time\n{GRADE}ctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0); "
        "os.setsid(); time.sleep(60)"
    )


def _named(name: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (path / "comm").read_text().strip() == name and "State:\tZ" not in (path / "status").read_text():
                found.append(path.name)
    return found


async def _gone(name: str) -> None:
    await _until(lambda: not _named(name))


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def _graders() -> list[str]:
    """Processes of this test's sandboxes that are still there; others' run with other limits."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (
                f"PPid:\t{os.getpid()}\n" in (path / "status").read_text()
                and b"RLIMIT_NPROC" in (path / "cmdline").read_bytes()
            ):
                found.append(path.name)
    return found
