"""Files: checked, stored, then recorded; a row never exists before its object is complete."""

import asyncio
import unicodedata
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Literal

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.models import File
from app.db.queries import scoped
from app.errors import InvalidRequest, NotFound
from app.ids import new_id, utc_now
from app.schemas.files import FileCreate
from app.services import lookup, objects
from app.storage import keys
from app.storage.base import Storage, StoredObject
from worker.data import rows

_MAX_FILENAME_CHARACTERS = 255


def check_name(filename: str, *, purpose: str) -> str:
    """The label to keep of a client's filename: no path, no control characters. Raises InvalidRequest."""
    last_part = filename.replace("\\", "/").rpartition("/")[2]
    label = "".join(c for c in last_part if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp")).strip()
    if not label or label in (".", ".."):
        raise InvalidRequest("The file has no name.", param="file")
    if len(label) > _MAX_FILENAME_CHARACTERS:
        raise InvalidRequest(f"The file's name is longer than {_MAX_FILENAME_CHARACTERS} characters.", param="file")
    # Clients that send bytes without a name send the name "upload", so a name without any extension passes.
    extension = Path(label).suffix.lower()
    if purpose == "fine-tune" and extension not in ("", ".jsonl"):
        sentence = f"Files for fine-tuning must be JSONL and named so: expected '.jsonl', but got '{extension}'."
        raise InvalidRequest(sentence, param="file")
    return label


async def store(storage: Storage, file: BinaryIO, *, purpose: str, max_line_bytes: int) -> tuple[str, StoredObject]:
    """Check an uploaded file's content and put it in storage under a new file id. Raises InvalidRequest."""
    if purpose == "fine-tune":
        refusal = await asyncio.to_thread(rows.check_jsonl, file, max_line_bytes=max_line_bytes)
        if refusal is not None:
            raise InvalidRequest(refusal)
    file_id = new_id("file-")
    return file_id, await storage.put_file(keys.uploaded_file(file_id), file)


async def create(
    session: AsyncSession,
    principal: Principal,
    *,
    file_id: str,
    stored: StoredObject,
    filename: str,
    body: FileCreate,
) -> File:
    """Record a file whose object is in storage."""
    now = utc_now()
    file = File(
        id=file_id,
        project_id=principal.project_id,
        filename=filename,
        purpose=body.purpose,
        status="processed",
        bytes=stored.bytes,
        sha256=stored.sha256,
        storage_key=stored.key,
        created_at=now,
        expires_at=_expiry(body, now),
    )
    session.add(file)
    await session.flush()
    return file


async def get(session: AsyncSession, principal: Principal, *, file_id: str, lock: bool = False) -> File:
    query = scoped(File, principal)
    file = await lookup.find(session, query.with_for_update() if lock else query, File.id, file_id)
    if file is None:
        raise NotFound(f"No such File object: {lookup.shown(file_id)}", param="id")
    return file


async def search(
    session: AsyncSession,
    principal: Principal,
    *,
    purpose: str | None,
    after: str | None,
    limit: int,
    order: Literal["asc", "desc"],
) -> lookup.Page[File]:
    query = scoped(File, principal)
    if purpose is not None:
        query = query.where(File.purpose == purpose.replace("\0", ""))
    return await lookup.page(
        session,
        query,
        cursor=File.id,
        order=(File.created_at, File.id),
        after=after,
        limit=limit,
        ascending=order == "asc",
    )


async def delete(session: AsyncSession, principal: Principal, *, file_id: str) -> File:
    file = await get(session, principal, file_id=file_id, lock=True)
    await session.delete(file)
    await objects.let_go(session, storage_key=file.storage_key)
    return file


def _expiry(body: FileCreate, now: datetime) -> datetime | None:
    return now + timedelta(seconds=body.expires_after.seconds) if body.expires_after else None
