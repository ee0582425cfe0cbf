"""Telling the living from the dead on one machine: each worker holds a lock on a file of its own.

A lock ends with its process, however it ends. So whoever can take the lock of a worker's file knows that
the worker is dead, and its leases need not be waited for. Of a worker on another machine there is no
file here, and nothing is known.
"""

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from app.ids import random_text


class Presence:
    """Holds this worker's lock from `announce` until `close`."""

    def __init__(self, directory: Path) -> None:
        self.worker_id = f"worker-{random_text(12)}"
        self._directory = directory
        self._file: IO[bytes] | None = None

    def announce(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._file = self._path(self.worker_id).open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        if self._file is not None:
            self._path(self.worker_id).unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def known_dead(self, worker_ids: Iterable[str]) -> list[str]:
        """Those of the workers that ran on this machine and are gone."""
        return [worker_id for worker_id in worker_ids if worker_id != self.worker_id and self._is_dead(worker_id)]

    def is_running(self, worker_id: str) -> bool:
        """Whether a worker with this id runs on this machine."""
        return self._path(worker_id).exists() and not self._is_dead(worker_id)

    def forget(self, worker_id: str) -> None:
        """Remove the file of a dead worker, once its leases are settled."""
        self._path(worker_id).unlink(missing_ok=True)

    def _path(self, worker_id: str) -> Path:
        return self._directory / f"{worker_id}.lock"

    def _is_dead(self, worker_id: str) -> bool:
        try:
            file = os.open(self._path(worker_id), os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            with suppress(OSError):
                os.close(file)
        return True
