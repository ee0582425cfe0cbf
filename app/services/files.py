"""Files: checked, stored, then recorded; a row never exists before its object is complete.

A file that is deleted, or whose time has come, is gone for clients at once. Should a job still have to read it, its row
and object stay until the job has: what was accepted is carried out.
"""

import asyncio
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from sqlalchemy import Select, or_
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.audit_models import Action
from app.db.models import File, Job, JobStatus
from app.db.queries import due, of_project, scoped
from app.errors import InvalidRequest, NotFound
from app.ids import new_id, utc_now
from app.schemas.files import FileCreate
from app.services import audit, lookup, objects
from app.storage import keys
from app.storage.base import Storage, StoredObject
from worker.data import rows

_MAX_FILENAME_CHARACTERS = 255
_SWEPT_AT_ONCE = 100
# Threads of their own, and few: whoever sends lines that are slow to parse waits for others of the kind, not everybody.
_checks = ThreadPoolExecutor(2, thread_name_prefix="check-file")
_BATCH_LIFE = timedelta(days=30)  # as at OpenAI; all other files stay until they are deleted
# On the wire a file for evaluations has this purpose, because strict clients know no `evals`.
_WIRE_PURPOSES = {"evals": "user_data"}


def check_name(filename: str, *, purpose: str, param: str = "file") -> str:
    """The label to keep of a client's filename: no path, no control characters. Raises InvalidRequest."""
    last_part = filename.replace("\\", "/").rpartition("/")[2]
    label = "".join(c for c in last_part if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp")).strip()
    if not label or label in (".", ".."):
        raise InvalidRequest("The file has no name.", param=param)
    if len(label) > _MAX_FILENAME_CHARACTERS:
        raise InvalidRequest(f"The file's name is longer than {_MAX_FILENAME_CHARACTERS} characters.", param=param)
    # Clients that send bytes without a name send the name "upload", so a name without any extension passes.
    extension = Path(label).suffix.lower()
    if purpose == "fine-tune" and extension not in ("", ".jsonl"):
        sentence = f"Expected file to have JSONL format, and a name that ends in '.jsonl', but got '{extension}'."
        raise InvalidRequest(sentence, param=param)
    return label


async def store(
    storage: Storage, principal: Principal, file: BinaryIO, *, purpose: str, max_line_bytes: int
) -> tuple[str, StoredObject]:
    """Check an uploaded file's content and put it in storage under a new file id. Raises InvalidRequest."""
    if purpose == "fine-tune":
        check = partial(rows.check_jsonl, file, max_line_bytes=max_line_bytes)
        refusal = await asyncio.get_running_loop().run_in_executor(_checks, check)
        if refusal is not None:
            raise InvalidRequest(refusal)
    file_id = new_id("file-")
    return file_id, await storage.put_file(keys.uploaded_file(principal.project_id, file_id), file)


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
    audit.record(session, principal, Action.FILE_CREATED, file.id)
    await session.flush()
    return file


async def find(session: AsyncSession, principal: Principal, *, file_id: str, keep: bool = False) -> File | None:
    """`keep` sees to it that the file is not deleted before the end of the transaction."""
    query = _visible(principal)
    return await lookup.find(session, query.with_for_update(read=True) if keep else query, File.id, file_id)


async def get(session: AsyncSession, principal: Principal, *, file_id: str, lock: bool = False) -> File:
    query = _visible(principal)
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
    query = _visible(principal)
    if purpose is not None:
        same = [kept for kept, shown in _WIRE_PURPOSES.items() if shown == purpose]
        query = query.where(File.purpose.in_([purpose.replace("\0", ""), *same]))
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
    if await _is_awaited(session, file):
        file.expires_at = file.created_at  # so that nobody sees it from now on; the sweep does the rest
    else:
        await _remove(session, file)
    audit.record(session, principal, Action.FILE_DELETED, file.id)
    return file


async def remove_expired(session: AsyncSession, *, now: datetime, after: str = "") -> str | None:
    """Remove the next expired files behind the id `after`. Returns where to go on, or None at the end."""
    query = due(File.expires_at, now).where(File.id > after).order_by(File.id).limit(_SWEPT_AT_ONCE)
    expired: list[File] = list(await session.scalars(query.with_for_update(skip_locked=True)))
    for file in expired:
        if not await _is_awaited(session, file):
            await _remove(session, file)
            if file.expires_at != file.created_at:  # else somebody has deleted it, and that is on record
                audit.record(session, None, Action.FILE_DELETED, file.id, project_id=file.project_id, reason="expired")
    return expired[-1].id if len(expired) == _SWEPT_AT_ONCE else None


def wire_purpose(file: File) -> str:
    return _WIRE_PURPOSES.get(file.purpose, file.purpose)


def _visible(principal: Principal) -> Select[File]:
    return scoped(File, principal).where(or_(File.expires_at.is_(None), File.expires_at > utc_now()))


async def _is_awaited(session: AsyncSession, file: File) -> bool:
    """Whether a job has still to read it. After its validation a job has what it needs in objects of its own."""
    reader = of_project(Job, file.project_id).where(
        Job.status == JobStatus.VALIDATING_FILES,
        or_(Job.training_file_id == file.id, Job.validation_file_id == file.id),
    )
    return await session.scalar(reader.limit(1)) is not None


async def _remove(session: AsyncSession, file: File) -> None:
    await session.delete(file)
    await objects.let_go(session, storage_key=file.storage_key)


def _expiry(body: FileCreate, now: datetime) -> datetime | None:
    if body.expires_after is not None:
        return now + timedelta(seconds=body.expires_after.seconds)
    return now + _BATCH_LIFE if body.purpose == "batch" else None
