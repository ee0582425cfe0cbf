"""The resident trainer of one slot, seen from outside: start it, talk to it, end it.

The trainer holds no secret: it gets an environment made for it, two pipes, and nothing on descriptor 0.
"""

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from worker.contract import events as contract
from worker.contract.events import MAX_LINE_BYTES, Event, Ready, Start, Stop
from worker.contract.spec import TrainSpec

_log = logging.getLogger(__name__)
START_SECONDS = 120.0  # imports alone take ten on a busy machine, and tell of no progress
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_HOME")


class Trainer:
    """One trainer process. `next_event` gives its events in order, then None for ever once it is gone."""

    def __init__(self, process: asyncio.subprocess.Process, command_fd: int, event_fd: int, log: Path) -> None:
        self.log = log
        self.is_ready = False  # it has done its imports
        self._settled = asyncio.Event()  # it is ready, or never will be
        self.holds: TrainSpec | None = None  # the spec it has loaded a base for, if any
        self._process = process
        self._command_fd = command_fd
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read(event_fd))

    @classmethod
    async def start(cls, *, log: Path, threads: int, device: str | None, memory_bytes: int | None = None) -> "Trainer":
        """`device` is a CUDA device for the trainer to see, or None to leave it what the worker sees."""
        command_read, command_write = os.pipe()
        event_read, event_write = os.pipe()
        try:
            with log.open("ab") as log_file:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "worker.trainer"),
                    *("--command-fd", str(command_read), "--event-fd", str(event_write)),
                    *("--parent-pid", str(os.getpid())),
                    *(("--memory-bytes", str(memory_bytes)) if memory_bytes is not None else ()),
                    pass_fds=(command_read, event_write),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    env=_environment(threads, device),
                    start_new_session=True,
                )
        except BaseException:
            os.close(command_write)
            os.close(event_read)
            raise
        finally:
            os.close(command_read)
            os.close(event_write)
        os.set_blocking(command_write, False)
        return cls(process, command_write, event_read, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None and not self._reading.done()

    def can_take(self, spec: TrainSpec) -> bool:
        """Whether it is alive, and the base that `spec` asks for is the one it holds, or it holds none."""
        return self.is_alive and (self.holds is None or _same_base(self.holds, spec))

    async def until_ready(self) -> None:
        """Return when it has done its imports, or is gone."""
        await self._settled.wait()

    async def next_event(self) -> Event | None:
        if self._reading.done() and self._events.empty():
            return None
        return await self._events.get()

    def send(self, command: Start | Stop) -> None:
        """A command to a trainer that is gone is lost; its end is told by `next_event`."""
        line = command.model_dump_json().encode() + b"\n"
        with suppress(BrokenPipeError, BlockingIOError):
            os.write(self._command_fd, line)

    def kill(self) -> None:
        """End the whole process group at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> str:
        """Kill what is left, release everything, and say how the process ended."""
        self.kill()
        code = await self._process.wait()
        await self._reading
        if self._command_fd >= 0:
            os.close(self._command_fd)
            self._command_fd = -1
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def _read(self, event_fd: int) -> None:
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        with open(event_fd, "rb", buffering=0) as pipe:  # noqa: ASYNC230 - a descriptor, nothing is waited for
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), pipe
            )
            try:
                while line := await reader.readline():
                    event = contract.events.validate_json(line)
                    if isinstance(event, Ready):
                        self.is_ready = True
                        self._settled.set()
                        _log.info("the trainer %d is ready, on %s", self.pid, event.device)
                    self._events.put_nowait(event)
            except (ValidationError, ValueError):
                _log.exception("the trainer %d sent a line that is no event; it is ended", self.pid)
                self.kill()
            finally:
                transport.close()
                self._settled.set()
                self._events.put_nowait(None)


def _same_base(one: TrainSpec, other: TrainSpec) -> bool:
    if (one.base, one.quantization) != (other.base, other.quantization):
        return False
    # A spec without an execution takes what its machine chooses, which is the same for every such spec.
    stated = [spec.execution for spec in (one, other) if spec.execution is not None]
    return len({(execution.dtype, execution.weights_dtype) for execution in stated}) < 2


def _environment(threads: int, device: str | None) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"HF_HUB_OFFLINE": "1", "HONE_TRAINER_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    return environment
