"""Looking at, and breaking, what storage holds of a base model."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from app.resources import open_resources
from app.services import base_models
from app.settings import Settings
from tests import factories
from tests.e2e.processes import Installation


@contextmanager
def damaged(installation: Installation, base_id: str, name: str) -> Iterator[None]:
    """One bit of the file is another in storage, until the block ends."""
    good = asyncio.run(_replace(installation, base_id, name, None))
    try:
        yield
    finally:
        asyncio.run(_replace(installation, base_id, name, good))


async def _replace(installation: Installation, base_id: str, name: str, content: bytes | None) -> bytes:
    """Returns what was there. Whoever reads the object meanwhile keeps the one that it began with."""
    given = {key.removeprefix("HONE_").lower(): value for key, value in installation.settings.items()}
    settings = Settings.model_validate(given | {"data_directory": installation.data})
    async with open_resources(settings) as resources:
        async with resources.read() as session:
            rows = {row.name: row for row in await base_models.files(session, base_id)}
        key = rows[name].storage_key
        assert key is not None
        found = b"".join([chunk async for chunk in resources.storage.read(key)])
        spoilt = bytearray(found)
        spoilt[-1] ^= 1
        await factories.stored(resources, key, bytes(spoilt) if content is None else content)
        return found
