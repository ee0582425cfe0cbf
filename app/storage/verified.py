"""Reading whole objects, and knowing that they are what was put."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from app.storage.base import ObjectCorrupt, Storage, StoredObject


async def read(storage: Storage, stored: StoredObject) -> AsyncIterator[bytes]:
    """The object's bytes; the last chunk comes only when all are known to be the recorded ones.

    So whoever passes them on has never passed on a whole that is wrong. Raises ObjectMissing at the first
    chunk, ObjectCorrupt at any.
    """
    # One byte more than there should be, to see an object that has grown.
    chunks = storage.read(stored.key, end=stored.bytes + 1)
    async for chunk in checked(chunks, key=stored.key, sha256=stored.sha256):
        yield chunk


async def checked(chunks: AsyncIterator[bytes], *, key: str, sha256: str) -> AsyncIterator[bytes]:
    """The chunks, the last one held back until their hash is known to be `sha256`."""
    digest = hashlib.sha256()
    held = b""
    async for chunk in chunks:
        await asyncio.to_thread(digest.update, chunk)
        if held:
            yield held
        held = chunk
    if digest.hexdigest() != sha256:
        raise ObjectCorrupt(key)
    if held:
        yield held


async def save(chunks: AsyncIterator[bytes], path: Path, *, key: str, sha256: str) -> None:
    """Write the chunks to `path`, which exists afterwards only if their hash is `sha256`. Raises ObjectCorrupt."""
    chunks = checked(chunks, key=key, sha256=sha256)
    first = await anext(chunks, b"")  # an object that is missing makes no file
    try:
        with path.open("wb") as copy:
            await asyncio.to_thread(copy.write, first)
            async for chunk in chunks:
                await asyncio.to_thread(copy.write, chunk)
    except BaseException:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        raise
