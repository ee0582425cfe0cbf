"""The preparing children of one validator, one for each job; the next one does its imports while it is waited for."""

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from worker.contract.errors import Blame, TrainError
from worker.contract.prepare import REPORT_NAME, PrepareReport, PrepareRequest

_log = logging.getLogger(__name__)
_LOG_CHARACTERS = 4000


class Preparer:
    """Has requests carried out, each by a fresh child; `close` ends the one that waits."""

    def __init__(self, log: Path) -> None:
        self._log_path = log
        self._waiting: asyncio.subprocess.Process | None = None

    async def be_ready(self) -> None:
        """Have a child that waits for a request, so that none waits for a child's imports."""
        if self._waiting is None or self._waiting.returncode is not None:
            self._waiting = await self._start()

    async def prepare(self, request: PrepareRequest, timeout_seconds: float) -> PrepareReport:
        """Carry the request out under its limits and a deadline. Raises TrainError when the child leaves no report."""
        await self.be_ready()
        child, self._waiting = self._waiting, None
        assert child is not None
        try:
            async with asyncio.timeout(timeout_seconds):
                with suppress(BrokenPipeError, ConnectionResetError):
                    await child.communicate(request.model_dump_json().encode())
        except TimeoutError as error:
            message = f"The files could not be checked within {timeout_seconds:g} seconds."
            raise TrainError("invalid_training_file", message, param="training_file") from error
        finally:
            await _end(child)
        report = Path(request.output_directory) / REPORT_NAME
        if report.exists():
            return PrepareReport.model_validate_json(report.read_bytes())
        tail = self._log_path.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARACTERS:]
        _log.error("checking files ended with code %s and no report:\n%s", child.returncode, tail)
        # Libraries that are not Python's abort where there is no memory.
        if child.returncode in (-signal.SIGXCPU, -signal.SIGABRT) or "MemoryError" in tail:
            message = "The files could not be checked within this server's limits of time and memory for it."
            raise TrainError("invalid_training_file", message, param="training_file")
        raise TrainError("internal_error", "The check of the files ended unexpectedly", blame=Blame.INTERNAL)

    async def close(self) -> None:
        child, self._waiting = self._waiting, None
        if child is not None:
            await _end(child)

    async def _start(self) -> asyncio.subprocess.Process:
        with self._log_path.open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker.prepare", "fd:0", str(os.getpid())),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ},
                start_new_session=True,
            )


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert child.stdin is not None
    child.stdin.close()
    await child.wait()
