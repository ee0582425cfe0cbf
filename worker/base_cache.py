"""The base models that this machine holds: directories that are complete or not there, and never grow past a limit.

An entry is a set of files, named for their hashes, so that ids with the same content share one. Everything about it
happens under its lock, which processes hold on a file and which ends with them, however they end: shared by those who
use the entry, alone by who fetches or removes it.

    <digest>.lock          its time is that of the last use; never removed, for somebody may be waiting at it
    <digest>/files/        complete and verified; renamed from
    <digest>/partial/      what has been fetched so far
    <digest>/state.json    how many bytes it takes, and names, sizes and times of the verified files
"""

import asyncio
import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.data import base_model_source

_LOOK_SECONDS = 0.2
_SPARE_BYTES = 256 << 20  # of the disk, for everything else


class NoRoom(Exception):
    """A base model does not fit on this machine; the message says what lacks."""


class Lock:
    """A lock that is held until `release`, or until its process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True)
class Entry:
    """A base model's place in the cache, whether it is there or not."""

    root: Path
    digest: str

    @property
    def files(self) -> Path:
        return self._directory / "files"

    @property
    def partial(self) -> Path:
        return self._directory / "partial"

    @property
    def lock_path(self) -> Path:
        return self.root / f"{self.digest}.lock"

    @property
    def bytes(self) -> int:
        """What it takes of the cache's room, or will take when it is complete."""
        return int(self._state().get("bytes", 0))

    async def lock(self, *, alone: bool) -> Lock:
        """Wait for the lock: for others to be done with using the entry, or with fetching it."""
        while (held := self.try_lock(alone=alone)) is None:  # noqa: ASYNC110 - other processes hold it too
            await asyncio.sleep(_LOOK_SECONDS)
        return held

    def try_lock(self, *, alone: bool) -> Lock | None:
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return Lock(descriptor)

    def is_whole(self) -> bool:
        """Whether its files are those that were verified, by their sizes and times: hashing them takes minutes."""
        try:
            found = base_model_source.signature(self.files)
        except OSError:
            return False
        return [list(one) for one in found] == self._state().get("signature")

    def touch(self) -> None:
        """Note that it is being used now."""
        os.utime(self.lock_path)

    def begin(self, num_bytes: int) -> None:
        """Claim room, under the lock, and make the directory to fetch into, if no earlier fetch has left it."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._write_state({"bytes": num_bytes})
        if self.files.is_symlink():  # not ours, and not followed
            self.files.unlink()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.files)
        self.partial.mkdir(mode=0o700, exist_ok=True)

    def complete(self, names: Collection[str]) -> None:
        """All files are in `partial`, verified and synced: make them, and nothing else that is there, the entry."""
        for path in self.partial.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        _sync(self.partial)
        self.partial.rename(self.files)
        _sync(self._directory)
        # A file that is only another name of an object on this disk takes no room of its own.
        own = sum(path.stat().st_size for path in self.files.iterdir() if path.stat().st_nlink == 1)
        self._write_state({"bytes": own, "signature": base_model_source.signature(self.files)})

    def remove(self) -> None:
        """Under the lock, held alone."""
        (self._directory / "state.json").unlink(missing_ok=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def last_used(self) -> float:
        return self.lock_path.stat().st_mtime

    @property
    def _directory(self) -> Path:
        return self.root / self.digest

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads((self._directory / "state.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _write_state(self, state: dict[str, Any]) -> None:
        temporary = self._directory / "state.json.new"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._directory / "state.json")


@dataclass(frozen=True)
class BaseCache:
    """`root` belongs to one machine, and `max_bytes` is for all its workers together."""

    root: Path
    max_bytes: int

    def entry(self, digest: str) -> Entry:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Entry(self.root, digest)

    def entries(self) -> list[Entry]:
        """Those that take room, the one that was used longest ago first."""
        found = [Entry(self.root, path.stem) for path in self.root.glob("*.lock") if path.with_suffix("").is_dir()]
        return sorted(found, key=lambda entry: entry.last_used)

    def make_room(self, wanted: Entry, num_bytes: int) -> None:
        """Remove what was used longest ago, and is not used now, until there is room; then claim it. Raises NoRoom."""
        if num_bytes > self.max_bytes:
            limit = f"HONE_BASE_CACHE_BYTES allows {_gb(self.max_bytes)}"
            raise NoRoom(f"it takes {_gb(num_bytes)}, and {limit} for all base models of this machine")
        with self._alone():
            others = [entry for entry in self.entries() if entry.digest != wanted.digest]
            used = sum(entry.bytes for entry in others)
            have = _tree_bytes(wanted.partial)
            for entry in others:
                if used + num_bytes <= self.max_bytes and self._free() + have >= num_bytes:
                    break
                lock = entry.try_lock(alone=True)
                if lock is None:
                    continue
                try:
                    used -= entry.bytes
                    entry.remove()
                finally:
                    lock.release()
            if used + num_bytes > self.max_bytes:
                limit = f"the {_gb(self.max_bytes)} that HONE_BASE_CACHE_BYTES allows"
                raise NoRoom(f"it takes {_gb(num_bytes)}, but of {limit} jobs are using {_gb(used)}")
            if (free := max(0, self._free() + have)) < num_bytes:
                raise NoRoom(f"it takes {_gb(num_bytes)}, but only {_gb(free)} are free at {self.root}")
            wanted.begin(num_bytes)

    def _free(self) -> int:
        return shutil.disk_usage(self.root).free - _SPARE_BYTES

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time makes room, or two would both claim what is free. It takes no longer than removing."""
        with (self.root / "room").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _tree_bytes(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
