"""Hostile Python graders, in each kind of sandbox that this machine has."""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

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
        away = await fault_of(box, f"import socket\n{GRADE}socket.create_connection(('192.0.2.1', 80), 1)")
        local = await fault_of(box, f"import socket\n{GRADE}socket.socket(socket.AF_UNIX)")
    for fault in (there, away, local):
        assert "Operation not permitted" in fault.sentence


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
    "call", ["os.memfd_create('m')", "libc.shmget(0, 4096, 0o1600)", "libc.unshare(0x10000000)", "libc.ptrace(0, 0, 0)"]
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


async def test_a_grader_that_leaves_its_group_ends_as_well(box: Sandbox) -> None:
    quick = Sandbox(box.way, box.command, box.uid, Limits(seconds=1, memory_bytes=LIMITS.memory_bytes))
    fault = await fault_of(quick, f"import os, time\n{GRADE}os.setsid(); time.sleep(60)")
    assert "unresponsive_reward_error" in fault.flags
    assert _graders() == []


@pytest.mark.parametrize("reward", ["'nan'", "float('nan')", "float('inf')", "True", "'7'", "None", "[1]"])
async def test_an_answer_that_a_grader_writes_itself_is_checked(box: Sandbox, reward: str) -> None:
    body = f"import os, json; os.write(3, json.dumps({{'reward': {reward}}}).encode()); os._exit(0)"
    fault = await fault_of(box, GRADE + body)
    assert fault.flags[0] == "python_grader_runtime_error"


async def test_the_way_that_was_chosen_is_tried() -> None:
    required.skip_without("bubblewrap")
    found = await sandbox.find("bubblewrap", LIMITS)
    assert found is not None
    assert found.way == "bubblewrap"


def _graders() -> list[str]:
    """Processes of sandboxes that are still there, whoever is their parent by now."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if path.name != str(os.getpid()) and b"RLIMIT_NPROC" in (path / "cmdline").read_bytes():
                found.append(path.name)
    return found
