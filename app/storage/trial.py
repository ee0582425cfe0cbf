"""Seeing whether storage works, by using it."""

from io import BytesIO

from app.storage import keys, verified
from app.storage.base import Storage

_CONTENT = b"Hone was here to see whether storage works."


async def run(storage: Storage) -> None:
    """Write, read and delete a small object. Raises StorageRefused or StorageUnavailable, or an OSError."""
    key = keys.trial()
    stored = await storage.put_file(key, BytesIO(_CONTENT))
    try:
        async for _ in verified.read(storage, stored):
            pass
    finally:
        await storage.delete(key)
