"""A real trainer process under the test's control, spoken to as a worker speaks to it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from worker.contract import events
from worker.contract.events import Event, Failed, Finished, Ready, Start, Stop, Stopped, Tick

REPOSITORY = Path(__file__).resolve().parents[2]


class TrainerProcess:
    def __init__(self) -> None:
        command_read, self._command_write = os.pipe()
        event_read, event_write = os.pipe()
        self.process = subprocess.Popen(
            trainer_command(command_read, event_write),
            pass_fds=(command_read, event_write),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=REPOSITORY,
            env={**os.environ, "HONE_TRAINER_THREADS": "1"},
        )
        os.close(command_read)
        os.close(event_write)
        self._events = os.fdopen(event_read, "rb")
        self._is_ready = False

    def __enter__(self) -> "TrainerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self.hang_up()
        self._events.close()

    def run(self, start: Start) -> list[Event]:
        """Send a start and return its events but the ticks, the last one included."""
        self.send(start)
        return [event for event in self.events() if not isinstance(event, Tick)]

    def wait_until_ready(self) -> None:
        if not self._is_ready:
            assert isinstance(self._next(), Ready)
            self._is_ready = True

    def send(self, command: Start | Stop) -> None:
        self.wait_until_ready()
        self.send_line(command.model_dump_json().encode() + b"\n")

    def send_line(self, line: bytes) -> None:
        os.write(self._command_write, line)

    def events(self) -> Iterator[Event]:
        """The events of the run under way, to its last."""
        while True:
            event = self._next()
            yield event
            if isinstance(event, Finished | Stopped | Failed):
                return

    def hang_up(self) -> None:
        """Close the command stream, as the death of a worker does."""
        if self._command_write >= 0:
            os.close(self._command_write)
            self._command_write = -1

    def _next(self) -> Event:
        line = self._events.readline()
        assert line, "the trainer is gone"
        return events.events.validate_json(line)


def trainer_command(command_fd: int, event_fd: int) -> list[str]:
    return [sys.executable, "-m", "worker.trainer", "--command-fd", str(command_fd), "--event-fd", str(event_fd)]


def comparable(given: list[Event]) -> list[dict[str, Any]]:
    """Events without what may differ between two equal runs: their name, place and speed."""
    return [event.model_dump(exclude={"run", "seconds", "directory"}) for event in given]
