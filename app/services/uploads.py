"""Files that arrive in parts: each part is an object of its own until the upload is completed.

Whoever ends an upload holds its row, so it ends in one way only. Parts are never removed by requests: those of an
upload that has ended are swept, also where the process that ended it died.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import BinaryIO

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db import after_commit
from app.db.audit_models import Action
from app.db.models import File, Upload, UploadPart, UploadStatus
from app.db.queries import due, of_project, scoped
from app.errors import InvalidRequest, NotFound
from app.ids import new_id, utc_now
from app.schemas.files import FileCreate
from app.schemas.uploads import UploadCreate
from app.services import audit, files, lookup
from app.storage import verified
from app.storage.base import ObjectCorrupt, ObjectMissing, Storage, StoredObject

MAX_PART_BYTES = 64 << 20
_MAX_PARTS = 10_000
_SPARE_BYTES = 16 * MAX_PART_BYTES  # of parts that were sent again because an answer was lost
_LIFE = timedelta(hours=1)
# A completion that began in time may still be at work: see `expire`.
_PATIENCE = timedelta(hours=1)
_REMEMBERED = timedelta(days=30)
_SWEPT_AT_ONCE = 100


async def create(session: AsyncSession, principal: Principal, *, body: UploadCreate, max_bytes: int) -> Upload:
    if body.bytes > max_bytes:
        sentence = f"The file is too large: an upload may have at most {max_bytes} bytes."
        raise InvalidRequest(sentence, param="bytes")
    now = utc_now()
    upload = Upload(
        id=new_id("upload_"),
        project_id=principal.project_id,
        filename=files.check_name(body.filename, purpose=body.purpose, param="filename"),
        purpose=body.purpose,
        bytes=body.bytes,
        file_expires_after_seconds=body.expires_after.seconds if body.expires_after else None,
        created_at=now,
        expires_at=now + _LIFE,
    )
    session.add(upload)
    audit.record(session, principal, Action.UPLOAD_CREATED, upload.id)
    await session.flush()
    return upload


async def get(session: AsyncSession, principal: Principal, *, upload_id: str, lock: bool = False) -> Upload:
    """`lock` holds the row until the end of the transaction."""
    query = scoped(Upload, principal)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    upload = await lookup.find(session, query, Upload.id, upload_id)
    if upload is None:
        raise NotFound(f"No such Upload object: {lookup.shown(upload_id)}", param="upload_id")
    return upload


async def file_of(session: AsyncSession, principal: Principal, upload: Upload) -> File | None:
    """The file that a completed upload has become, if it is still there."""
    return None if upload.file_id is None else await files.find(session, principal, file_id=upload.file_id)


def status_of(upload: Upload) -> UploadStatus:
    is_late = upload.status == UploadStatus.PENDING and upload.expires_at <= utc_now()
    return UploadStatus.EXPIRED if is_late else UploadStatus(upload.status)


async def require_room(session: AsyncSession, principal: Principal, *, upload_id: str, lock: bool = False) -> Upload:
    """The upload, if it takes another part. Raises NotFound or InvalidRequest."""
    upload = await get(session, principal, upload_id=upload_id, lock=lock)
    _require_pending(upload, status_of(upload), "take parts")
    if upload.num_parts >= _MAX_PARTS:
        raise InvalidRequest(f"An upload may have at most {_MAX_PARTS} parts.")
    if upload.received_bytes >= upload.bytes + _SPARE_BYTES:
        sentence = f"The parts have {upload.received_bytes} bytes already, and the upload is of {upload.bytes}."
        raise InvalidRequest(sentence, param="data")
    return upload


async def add_part(
    session: AsyncSession, principal: Principal, *, upload_id: str, part_id: str, stored: StoredObject
) -> UploadPart:
    """Record a part whose object is in storage."""
    upload = await require_room(session, principal, upload_id=upload_id, lock=True)
    part = UploadPart(
        id=part_id,
        project_id=upload.project_id,
        upload_id=upload.id,
        bytes=stored.bytes,
        sha256=stored.sha256,
        storage_key=stored.key,
        created_at=utc_now(),
    )
    session.add(part)
    upload.num_parts += 1
    upload.received_bytes += stored.bytes
    audit.record(session, principal, Action.UPLOAD_PART_CREATED, part.id, upload_id=upload.id)
    await session.flush()
    return part


async def chosen(
    session: AsyncSession, principal: Principal, upload: Upload, *, part_ids: Sequence[str]
) -> Sequence[UploadPart]:
    """The parts that a pending upload is to be completed from, in their order. Raises InvalidRequest."""
    _require_pending(upload, status_of(upload), "be completed")
    query = scoped(UploadPart, principal).where(UploadPart.upload_id == upload.id)
    held = {part.id: part for part in await session.scalars(query)}
    seen: set[str] = set()
    for part_id in part_ids:
        if part_id not in held:
            sentence = f"The upload {upload.id} has no part '{lookup.shown(part_id)}'."
            raise InvalidRequest(sentence, param="part_ids")
        if part_id in seen:
            raise InvalidRequest(f"The part '{part_id}' is named twice.", param="part_ids")
        seen.add(part_id)
    parts = [held[part_id] for part_id in part_ids]
    if (total := sum(part.bytes for part in parts)) != upload.bytes:
        sentence = f"The parts have {total} bytes together, but the upload was created for {upload.bytes}."
        raise InvalidRequest(sentence, param="part_ids")
    return parts


async def assemble(storage: Storage, parts: Sequence[UploadPart], target: BinaryIO, *, md5: str | None) -> None:
    """Write the parts one behind the other. Raises InvalidRequest if their bytes are not what was sent, or announced.

    To be called with no session open.
    """
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        stored = StoredObject(part.storage_key, part.bytes, part.sha256)
        try:
            async for chunk in verified.read(storage, stored):
                await asyncio.to_thread(target.write, chunk)
                await asyncio.to_thread(digest.update, chunk)
        except (ObjectCorrupt, ObjectMissing) as error:
            # Missing above all when somebody else has ended the upload meanwhile.
            sentence = f"The part {part.id} is not whole in storage; add it again."
            raise InvalidRequest(sentence, param="part_ids") from error
    await asyncio.to_thread(target.flush)
    if md5 is not None and digest.hexdigest() != md5.lower():
        sentence = f"The md5 checksum of the parts is {digest.hexdigest()}, not the one that was given."
        raise InvalidRequest(sentence, param="md5")


async def complete(
    session: AsyncSession, principal: Principal, *, upload_id: str, file_id: str, stored: StoredObject
) -> Upload:
    """Make a file of an upload whose assembled object is in storage; the first to do so wins, and others get the same.

    One that began before the upload's expiry may end after it.
    """
    upload = await get(session, principal, upload_id=upload_id, lock=True)
    if upload.status == UploadStatus.COMPLETED:
        after_commit.delete_object(session, stored.key)
        return upload
    _require_pending(upload, upload.status, "be completed")
    seconds = upload.file_expires_after_seconds
    policy = None if seconds is None else {"anchor": "created_at", "seconds": seconds}
    body = FileCreate.model_validate({"purpose": upload.purpose, "expires_after": policy})
    await files.create(session, principal, file_id=file_id, stored=stored, filename=upload.filename, body=body)
    upload.file_id = file_id
    _end(upload, UploadStatus.COMPLETED, utc_now())
    audit.record(session, principal, Action.UPLOAD_COMPLETED, upload.id, file_id=file_id)
    return upload


async def cancel(session: AsyncSession, principal: Principal, *, upload_id: str) -> Upload:
    """Repeating it is no error; nor is it one for an upload that has expired, and stays so."""
    upload = await get(session, principal, upload_id=upload_id, lock=True)
    if upload.status == UploadStatus.COMPLETED:
        raise InvalidRequest(f"The upload {upload.id} is completed; it cannot be cancelled.")
    if upload.status == UploadStatus.PENDING:
        is_late = status_of(upload) == UploadStatus.EXPIRED
        _end(upload, UploadStatus.EXPIRED if is_late else UploadStatus.CANCELLED, utc_now())
        audit.record(session, principal, Action.UPLOAD_CANCELLED, upload.id)
    return upload


async def expire(session: AsyncSession, *, now: datetime) -> int:
    """End some uploads that nobody completed in time, and returns how many.

    For requests they have expired before that; what waits are completions that began in time and still assemble.
    """
    query = due(Upload.expires_at, now - _PATIENCE).where(Upload.status == UploadStatus.PENDING).limit(_SWEPT_AT_ONCE)
    late: Sequence[Upload] = list(await session.scalars(query.with_for_update(skip_locked=True)))
    for upload in late:
        _end(upload, UploadStatus.EXPIRED, now)
    return len(late)


async def needless_parts(session: AsyncSession, *, now: datetime) -> Sequence[UploadPart]:
    """Some parts of uploads that have ended, whose objects are to be removed before their rows."""
    query = due(Upload.ended_at, now).where(Upload.num_parts > 0).order_by(Upload.ended_at).limit(1)
    upload: Upload | None = await session.scalar(query)
    return [] if upload is None else list(await session.scalars(_parts_of(upload).limit(_SWEPT_AT_ONCE)))


async def forget_parts(session: AsyncSession, parts: Sequence[UploadPart]) -> None:
    """The objects of these parts, all of one upload, are gone. Another sweep may have said so before, or dropped it."""
    first = parts[0]
    query = of_project(Upload, first.project_id).where(Upload.id == first.upload_id)
    upload = (await session.scalars(query.with_for_update().execution_options(populate_existing=True))).one_or_none()
    if upload is None:
        return
    for part in await session.scalars(_parts_of(upload).where(UploadPart.id.in_([part.id for part in parts]))):
        await session.delete(part)
        upload.num_parts -= 1
        upload.received_bytes -= part.bytes


async def forget_old(session: AsyncSession, *, now: datetime) -> None:
    """Drop uploads that ended long ago; files that came of them stay."""
    query = due(Upload.ended_at, now - _REMEMBERED).where(Upload.num_parts == 0).limit(_SWEPT_AT_ONCE)
    for upload in await session.scalars(query.with_for_update(skip_locked=True)):
        await session.delete(upload)


def _parts_of(upload: Upload) -> Select[UploadPart]:
    return of_project(UploadPart, upload.project_id).where(UploadPart.upload_id == upload.id)


def _require_pending(upload: Upload, status: UploadStatus, can_no_longer: str) -> None:
    if status != UploadStatus.PENDING:
        has = "has expired" if status == UploadStatus.EXPIRED else f"is {status}"
        raise InvalidRequest(f"The upload {upload.id} {has}; it can no longer {can_no_longer}.")


def _end(upload: Upload, status: UploadStatus, now: datetime) -> None:
    upload.status = status
    upload.ended_at = now
