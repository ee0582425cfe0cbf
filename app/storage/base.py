"""Where bytes lie: files, token files, checkpoints, adapters, log segments."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Protocol

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredObject:
    key: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ObjectInfo:
    """`age` is by the storage's own clock: it is what sweeps go by, and this machine's clock may differ."""

    key: str
    bytes: int
    age: timedelta


class ObjectMissing(Exception):
    """No object lies under that key."""


class ObjectCorrupt(Exception):
    """The bytes that were read are not those that were recorded."""


class StorageUnavailable(OSError):
    """Storage does not answer, is too slow, or failed; the same call may work later."""


class StorageRefused(StorageUnavailable):
    """Storage answers, and no: the bucket is missing or the credentials do not reach it. The message says which."""


class Storage(Protocol):
    """Keys are made by `app.storage.keys` and hold no user text. An object appears whole or not at all.

    Every method may raise StorageUnavailable.
    """

    async def put_file(self, key: str, source: Path | BinaryIO) -> StoredObject:
        """Copy a local file into storage; an existing object is replaced. A put that is broken off leaves no part.

        An open file is read from its beginning. Its SHA-256 is recorded with the object where storage can do that.
        """
        ...

    async def put_known(self, key: str, source: Path, *, sha256: str) -> StoredObject:
        """Like `put_file`, for a file whose hash is known and which nobody is expected to change from now on.

        Storage on the same file system links the file instead of copying it, and does not read it either.
        Raises ObjectCorrupt when it is read and its hash is another.
        """
        ...

    def local_path(self, key: str) -> Path | None:
        """Where this machine has the object as a file, to read and to link, never to write. None if only elsewhere."""
        ...

    async def get_file(self, key: str, path: Path, *, sha256: str) -> None:
        """Copy an object to `path`. Raises ObjectMissing, or ObjectCorrupt when its hash is another."""
        ...

    def read(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`, in chunks; what lies beyond the object is left out.

        Raises ObjectMissing at the first chunk. A reader keeps the object that it began with. What is read may be
        another thing than was recorded: see `app.storage.verified`.
        """
        ...

    async def stat(self, key: str) -> ObjectInfo:
        """Raises ObjectMissing."""
        ...

    def list_objects(self, prefix: str) -> AsyncIterator[Sequence[ObjectInfo]]:
        """All objects whose keys begin with `prefix`, in pages of at most 1000."""
        ...

    async def download_url(self, key: str, *, disposition: str) -> str | None:
        """A link that lets whoever holds it fetch the object for five minutes; None where clients have no way in.

        `disposition` becomes the answer's Content-Disposition. The link is a secret: never log it.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    async def remove_unfinished(self, *, older_than: timedelta) -> int:
        """Clear away what broken-off puts have left; returns how many there were."""
        ...

    async def close(self) -> None: ...
