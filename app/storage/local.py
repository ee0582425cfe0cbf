"""Objects as files under one directory."""

import asyncio
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from app.storage.base import ObjectCorrupt, ObjectMissing, StoredObject

_CHUNK_BYTES = 1 << 20
_KEY = re.compile(r"[A-Za-z0-9_\-]+(?:[./][A-Za-z0-9_\-]+)*")


class LocalStorage:
    """Writes to a temporary name, syncs, and renames: a reader never sees half an object."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    async def put_file(self, key: str, path: Path) -> StoredObject:
        return await asyncio.to_thread(self._put_file, key, path)

    async def get_file(self, key: str, path: Path, *, sha256: str) -> None:
        await asyncio.to_thread(self._get_file, key, path, sha256)

    async def read(self, key: str, *, start: int = 0) -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(self._path(key).open, "rb")
        except FileNotFoundError as error:
            raise ObjectMissing(key) from error
        with file:
            file.seek(start)
            while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield chunk

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError("not a storage key")
        return self._root / key

    def _put_file(self, key: str, path: Path) -> StoredObject:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source:
            size, digest = _write_synced(source, target)
        return StoredObject(key, size, digest)

    def _get_file(self, key: str, path: Path, sha256: str) -> None:
        try:
            source = self._path(key).open("rb")
        except FileNotFoundError as error:
            raise ObjectMissing(key) from error
        with source, path.open("wb") as copy:
            digest = hashlib.sha256()
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
        if digest.hexdigest() != sha256:
            path.unlink()
            raise ObjectCorrupt(key)


def _write_synced(source, target: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as copy:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return size, digest.hexdigest()
