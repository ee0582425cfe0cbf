"""What an installation holds at one moment: every row, every object, everything that its processes wrote."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

import app.db.models
import app.db.webhook_models  # noqa: F401 - the metadata is that of the tables that were loaded
from app.db.base import Base
from app.resources import open_resources
from app.settings import Settings
from app.storage.base import ObjectMissing
from tests.history.recorder import Content

Row = dict[str, Any]


@dataclass
class Snapshot:
    """Rows by table, objects by key, and what is said in logs, stored or not, by where it stands."""

    tables: dict[str, list[Row]]
    objects: dict[str, Content]
    texts: dict[str, bytes]


async def take(settings: Settings, directories: Iterable[Path]) -> Snapshot:
    """Rows are those of one moment; objects are read after them. Logs are looked for below the directories."""
    # What carries wakes is no part of the truth, and may be gone by now; and all rows are more than a request reads.
    patient = settings.model_copy(update={"redis_url": None, "database_timeout_seconds": 60.0})
    async with open_resources(patient) as resources:
        tables: dict[str, list[Row]] = {}
        async with resources.read() as session:
            if not resources.database.is_sqlite:
                await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            for table in Base.metadata.sorted_tables:
                found = await session.execute(select(table))
                tables[table.name] = [dict(row) for row in found.mappings()]
        objects: dict[str, Content] = {}
        texts = {f"table {name}": json.dumps(rows, default=str).encode() for name, rows in tables.items()}
        async for page in resources.storage.list_objects(""):
            for info in page:
                try:
                    content = b"".join([chunk async for chunk in resources.storage.read(info.key)])
                except ObjectMissing:
                    continue
                objects[info.key] = Content.of(content)
                if "/log/" in info.key:
                    texts[info.key] = content
    for directory in directories:
        texts |= {str(path): path.read_bytes() for path in directory.rglob("*.log")}
    return Snapshot(tables, objects, texts)
