"""A tracker's process seen from outside: start it, ask it one thing at a time, end it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL

from pydantic import ValidationError

from worker.contract import tracking
from worker.contract.tracking import MAX_LINE_BYTES, Close, Done, Failed, Log, Open, Opened

# Beside what any process needs: the way through a proxy, and whom to trust on it.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH")
_PASSED_ON += ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_PASSED_ON += ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


class TrackerFailed(Exception):
    """The tracker gave up, hangs or is gone. The text is one line."""


class TrackerProcess:
    def __init__(self, process: asyncio.subprocess.Process, patience_seconds: float) -> None:
        self._process = process
        self._patience_seconds = patience_seconds

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, command: Open | Log | Close) -> Opened | Done:
        """Raises TrackerFailed, also when there is no answer in time."""
        try:
            async with asyncio.timeout(self._patience_seconds):
                answer = await self._answer_to(command)
        except TimeoutError as error:
            raise TrackerFailed(f"no answer within {self._patience_seconds:g} seconds") from error
        except (OSError, ValidationError, ValueError) as error:
            raise TrackerFailed("its process ended or answered with nonsense") from error
        if isinstance(answer, Failed):
            raise TrackerFailed(answer.reason)
        return answer

    async def _answer_to(self, command: Open | Log | Close) -> Opened | Done | Failed:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command.model_dump_json().encode() + b"\n")
        with suppress(ConnectionError):  # it may have said why before it went
            await self._process.stdin.drain()
        return tracking.answers.validate_json(await self._process.stdout.readline())


@asynccontextmanager
async def started(*, work_directory: Path, patience_seconds: float) -> AsyncIterator[TrackerProcess]:
    """A process that is killed, with its children, at the end of the block."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # No settings or logins of whoever runs the worker, and no files left behind.
    environment |= {"HOME": str(work_directory), "TMPDIR": str(work_directory)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "worker.tracker", str(os.getpid())),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # it may hold a secret, and what is of use comes as the answer
        limit=MAX_LINE_BYTES,
        env=environment,
        start_new_session=True,
    )
    try:
        yield TrackerProcess(process, patience_seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, SIGKILL)
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
