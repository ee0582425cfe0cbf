"""Objects as files under one directory."""

import asyncio
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from app.storage import verified
from app.storage.base import CHUNK_BYTES, ObjectCorrupt, ObjectInfo, ObjectMissing, StoredObject
from app.storage.keys import require_key

_PAGE = 1000


class LocalStorage:
    """Writes to a temporary name, syncs, and renames: a reader never sees half an object."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    async def put_file(self, key: str, source: Path | BinaryIO) -> StoredObject:
        return await asyncio.to_thread(self._put_file, key, source)

    async def put_known(self, key: str, source: Path, *, sha256: str) -> StoredObject:
        return await asyncio.to_thread(self._put_known, key, source, sha256)

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    async def get_file(self, key: str, path: Path, *, sha256: str) -> None:
        await verified.save(self.read(key), path, key=key, sha256=sha256)

    async def read(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(self._path(key).open, "rb")
        except FileNotFoundError as error:
            raise ObjectMissing(key) from error
        with file:
            file.seek(start)
            while end is None or start < end:
                most = CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - start)
                chunk = await asyncio.to_thread(file.read, most)
                if not chunk:
                    return
                start += len(chunk)
                yield chunk

    async def stat(self, key: str) -> ObjectInfo:
        try:
            return await asyncio.to_thread(_info, key, self._path(key))
        except FileNotFoundError as error:
            raise ObjectMissing(key) from error

    async def list_objects(self, prefix: str) -> AsyncIterator[Sequence[ObjectInfo]]:
        pages = self._pages(prefix)
        while page := await asyncio.to_thread(next, pages, None):
            yield page

    async def download_url(self, key: str, *, disposition: str) -> str | None:
        return None

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    async def remove_unfinished(self, *, older_than: timedelta) -> int:
        return await asyncio.to_thread(self._remove_unfinished, older_than)

    async def close(self) -> None:
        pass

    def _path(self, key: str) -> Path:
        return self._root / require_key(key)

    def _put_file(self, key: str, source: Path | BinaryIO) -> StoredObject:
        target = self._path(key)
        with opened(source) as file:
            target.parent.mkdir(parents=True, exist_ok=True)
            size, digest = _write_synced(file, target)
        return StoredObject(key, size, digest)

    def _put_known(self, key: str, source: Path, sha256: str) -> StoredObject:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        try:
            # Resolved, because a link to a symbolic link would follow whoever changes that one.
            os.link(source.resolve(strict=True), temporary)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without links, or a file that is not ours
            stored = self._put_file(key, source)
            if stored.sha256 != sha256:
                target.unlink(missing_ok=True)
                raise ObjectCorrupt(key) from None
            return stored
        temporary.replace(target)
        temporary.unlink(missing_ok=True)  # POSIX: renaming one link of a file over another does nothing
        _sync_directory(target.parent)
        return StoredObject(key, target.stat().st_size, sha256)

    def _pages(self, prefix: str) -> Iterator[list[ObjectInfo]]:
        page: list[ObjectInfo] = []
        for path in self._files():
            key = path.relative_to(self._root).as_posix()
            if path.name.startswith(".") or not key.startswith(prefix):
                continue
            try:
                page.append(_info(key, path))
            except FileNotFoundError:  # deleted since
                continue
            if len(page) == _PAGE:
                yield page
                page = []
        if page:
            yield page

    def _remove_unfinished(self, older_than: timedelta) -> int:
        removed = 0
        for path in self._files():
            with suppress(FileNotFoundError):  # put in place since
                if path.name.startswith(".") and time.time() - path.stat().st_mtime > older_than.total_seconds():
                    path.unlink()
                    removed += 1
        return removed

    def _files(self) -> Iterator[Path]:
        for directory, _, names in os.walk(self._root):
            yield from (Path(directory, name) for name in names)


@contextmanager
def opened(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    """The source at its beginning. A file that was open before stays so."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file
    else:
        source.seek(0)
        yield source


def _info(key: str, path: Path) -> ObjectInfo:
    found = path.stat()
    return ObjectInfo(key, found.st_size, timedelta(seconds=time.time() - found.st_mtime))


def _write_synced(source: BinaryIO, target: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    temporary = _temporary(target)
    try:
        with temporary.open("xb") as copy:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)
    return size, digest.hexdigest()


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}")


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
