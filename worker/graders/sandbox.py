"""Where Python graders run: without network, secrets or files of this machine, and not for long.

Two ways, of which the operator chooses. *bubblewrap* gives a grader a file system of its own with Python in it and
nothing else. *other_user*, for a worker that is root, has namespaces by util-linux' `unshare`, and the grader is
another user: it can read what everybody on this machine can. In both ways there is no network, no environment, no
other process to be seen, one process and thread, no file that can be written, and limits of memory and time; and a
filter of system calls shuts what none needs, sockets of every kind among it.
"""

import asyncio
import json
import logging
import math
import os
import shutil
import signal
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from worker.graders.faults import GraderFault

_log = logging.getLogger(__name__)
_NOBODY = 65534
_END_SECONDS = 5.0
_MAX_ANSWER_BYTES = 1 << 17
_CHILD = Path(__file__).with_name("sandbox_child.py")
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_WRITABLE_BY_ALL = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - to be hidden from graders

# Returns 1 where the sandbox keeps its promises. The address is one that nobody has; where there is no filter for the
# machine's system calls, sockets of the file system are out of reach only if there is no such file system.
_TRIAL = """
import os, socket
def grade(sample, item):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9))
        return 0
    except OSError:
        pass
    if item["shares_files"]:
        try:
            socket.socket(socket.AF_UNIX)
            return 0
        except OSError:
            pass
    if os.access(item["secret"], os.R_OK) or os.access(item["secret"], os.X_OK):
        return 0
    return os.getuid() != 0
"""
Way = Literal["bubblewrap", "other_user"]


@dataclass(frozen=True)
class Limits:
    """`seconds` of wall time and of processor time; `memory_bytes` of address space."""

    seconds: float = 120.0
    memory_bytes: int = 1 << 30


@dataclass(frozen=True)
class Sandbox:
    """`command` comes before the interpreter's own; `uid` is whom the child becomes, where it begins as root."""

    way: Way
    command: tuple[str, ...]
    uid: int | None
    limits: Limits

    async def grade(self, source: str, sample: dict[str, Any], item: Any) -> float:
        """What `grade(sample, item)` of the source returns, a finite number. Raises GraderFault."""
        request = {
            "source": source,
            "sample": sample,
            "item": item,
            "paths": _site_packages(),
            "uid": self.uid,
            "cpu_seconds": int(self.limits.seconds) + 1,
            "memory_bytes": self.limits.memory_bytes,
        }
        return _read_answer(await self._run(json.dumps(request).encode()), self.limits)

    async def _run(self, request: bytes) -> "_Ended":
        child = await asyncio.create_subprocess_exec(
            *(*self.command, _python(), "-I", "-S", "-B", "-X", "utf8", "-c", _CHILD.read_text("utf-8")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
        overflow = asyncio.Event()
        talking = asyncio.create_task(_talk(child, request, overflow))
        too_much = asyncio.create_task(overflow.wait())
        try:
            waited_for = (talking, too_much)
            timeout = self.limits.seconds
            done, _ = await asyncio.wait(waited_for, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            too_much.cancel()
            has_ended = await _end(child, talking)
        if not has_ended:
            raise _broken("The sandbox for Python graders did not end.")
        output, errors = talking.result()
        return _Ended(output, errors, is_late=not done)


@dataclass(frozen=True)
class _Ended:
    output: bytes
    errors: bytes
    is_late: bool


async def find(limits: Limits, *, way: Way, secret: Path) -> Sandbox | None:
    """The sandbox of this way if it works on this machine, found by trying it; else the log says why there is none.
    `secret` is the directory that no grader may see."""
    sandbox = bubblewrap(limits) if way == "bubblewrap" else other_user(limits)
    if sandbox is None:
        needs = "bubblewrap to be installed" if way == "bubblewrap" else "a worker that is root, and util-linux"
        _log.warning("Python graders are not run here: HONE_PYTHON_GRADER_SANDBOX=%s needs %s", way, needs)
        return None
    try:
        if await sandbox.grade(_TRIAL, {}, {"secret": str(secret), "shares_files": way == "other_user"}) == 1:
            return sandbox
        _log.warning("Python graders are not run here: %s does not keep them from the network or %s", way, secret)
    except (GraderFault, OSError) as error:
        _log.warning("Python graders are not run here: %s does not work: %s", way, error)
    return None


def bubblewrap(limits: Limits) -> Sandbox | None:
    program = shutil.which("bwrap")
    if program is None:
        return None
    command = [program, "--die-with-parent", "--new-session", "--clearenv", "--unshare-net", "--unshare-pid"]
    command += ["--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "grader"]
    is_root = os.geteuid() == 0
    if is_root:  # inside, root becomes nobody, and keeps what that takes
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    for place in _readable():
        path = Path(place)
        for parent in reversed(path.parents[:-1]):  # which bubblewrap would make for root alone
            command += ["--perms", "0755", "--dir", str(parent)]
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), place]
        elif path.exists():
            command += ["--ro-bind", place, place]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    command += ["--proc", "/proc", "--dir", "/tmp", "--remount-ro", "/", "--chdir", "/", "--"]  # noqa: S108
    return Sandbox("bubblewrap", tuple(command), _NOBODY if is_root else None, limits)


def other_user(limits: Limits) -> Sandbox | None:
    programs = {name: shutil.which(name) for name in ("setpriv", "unshare", "sh", "env", "mount")}
    if os.geteuid() != 0 or None in programs.values():
        return None
    hide = "".join(
        f"[ ! -d {place} ] || {programs['mount']} -t tmpfs -o ro none {place} || exit 1; " for place in _WRITABLE_BY_ALL
    )
    # root's shell stays the namespace's first process: it dies with this one, which the grader, having changed its
    # user, would not, and everything in the namespace dies with it, in whatever session or group it is.
    command = [
        *(str(programs["setpriv"]), "--pdeathsig", "KILL", "--no-new-privs"),
        *(str(programs["unshare"]), "--net", "--pid", "--ipc", "--uts", "--mount", "--mount-proc"),
        *("--fork", "--kill-child"),
        *(str(programs["sh"]), "-c", f'{hide}{programs["env"]} -i "$@"; exit $?', "sh"),
    ]
    return Sandbox("other_user", tuple(command), _NOBODY, limits)


def _readable() -> list[str]:
    """What an interpreter needs to start and to import what is installed beside us."""
    base = sys.base_prefix
    python = [_python(), sysconfig.get_path("stdlib")] if base == "/usr" else [base]
    return list(dict.fromkeys((*_SYSTEM_LIBRARIES, "/etc/ld.so.cache", *python, *_site_packages())))


def _site_packages() -> list[str]:
    return list(dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")))


def _python() -> str:
    """Not the virtual environment's link, which leads to a place that is not in the sandbox."""
    return os.path.realpath(sys.executable)


async def _end(child: asyncio.subprocess.Process, talking: asyncio.Task[Any]) -> bool:
    """Kills what is left of it. False where something outside of its reach holds its pipes: nobody waits for that."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    ended: set[asyncio.Task[Any]] = set()
    try:  # the pipes are read to their ends: before that asyncio does not tell of the child's
        ended, _ = await asyncio.wait((talking,), timeout=_END_SECONDS)
    finally:
        if not ended:
            talking.cancel()
            child._transport.close()  # pyright: ignore[reportAttributeAccessIssue]
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            await child.wait()
    return bool(ended)


def _broken(sentence: str) -> GraderFault:
    return GraderFault(sentence, "python_grader_server_error", server_error_type="sandbox_failed")


async def _talk(child: asyncio.subprocess.Process, request: bytes, overflow: asyncio.Event) -> tuple[bytes, bytes]:
    """What it writes to stdout and to stderr."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    _, output, errors = await asyncio.gather(
        _send(child.stdin, request), _collect(child.stdout, overflow), _collect(child.stderr, overflow)
    )
    return output, errors


async def _send(stream: asyncio.StreamWriter, content: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.write(content)
        await stream.drain()
        stream.close()


async def _collect(stream: asyncio.StreamReader, overflow: asyncio.Event) -> bytes:
    """To the end, however long that is; keeps only as much as an answer may have."""
    received = bytearray()
    while chunk := await stream.read(65536):
        received += chunk[: _MAX_ANSWER_BYTES - len(received)]
        if len(received) == _MAX_ANSWER_BYTES:
            overflow.set()
    return bytes(received)


def _read_answer(ended: _Ended, limits: Limits) -> float:
    ready, _, answer = ended.output.partition(b"\n")
    if ended.is_late:
        sentence = f"The grader did not return within {limits.seconds:g} seconds."
        raise GraderFault(sentence, "python_grader_runtime_error", "unresponsive_reward_error")
    if ready != b"ready":
        _log.error("a sandbox did not start: %s", ended.errors[-2000:].decode("utf-8", "replace"))
        raise _broken("The sandbox for Python graders did not start.")
    try:
        found = orjson.loads(answer)
        if "error" in found:
            raise GraderFault(str(found["error"]), "python_grader_runtime_error")
        return _finite(found["reward"])
    except (ValueError, TypeError, LookupError) as error:
        sentence = "The grader's process ended before grade returned: it left, or had used up its memory or time."
        raise GraderFault(sentence, "python_grader_runtime_error") from error


def _finite(reward: object) -> float:
    """Once more than in the child, where a grader may write the answer itself."""
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise TypeError("not a finite number")
    return float(reward)
