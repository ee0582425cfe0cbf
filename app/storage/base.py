"""Where bytes lie: files, token files, checkpoints, adapters, log segments."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class StoredObject:
    key: str
    bytes: int
    sha256: str


class ObjectMissing(Exception):
    """No object lies under that key."""


class ObjectCorrupt(Exception):
    """The bytes that were read are not those that were recorded."""


class Storage(Protocol):
    """Keys are made by `app.storage.keys` and hold no user text. An object appears whole or not at all."""

    async def put_file(self, key: str, path: Path) -> StoredObject:
        """Copy a local file into storage; an existing object is replaced."""
        ...

    async def get_file(self, key: str, path: Path, *, sha256: str) -> None:
        """Copy an object to `path`. Raises ObjectMissing, or ObjectCorrupt when its hash is another."""
        ...

    def read(self, key: str, *, start: int = 0) -> AsyncIterator[bytes]:
        """The object's bytes from `start`, in chunks. Raises ObjectMissing at the first chunk."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...
