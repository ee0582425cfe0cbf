"""/v1/uploads: large files, in parts that may arrive in parallel and in any order."""

import asyncio
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from fastapi import APIRouter, Request

from app.api import access, multipart
from app.api.access import needs
from app.api.deps import Caller, Opened, WriteSession
from app.api.files import to_read as file_to_read
from app.api.times import unix
from app.auth import Principal
from app.db.models import File, Upload, UploadStatus
from app.errors import InvalidRequest
from app.ids import new_id
from app.resources import Resources
from app.schemas.uploads import UploadComplete, UploadCreate, UploadPartRead, UploadRead
from app.services import files, quotas, uploads
from app.services.objects import removed_if_refused
from app.services.quotas import Limit
from app.storage import keys

router = APIRouter(prefix="/v1/uploads", tags=["Uploads"], dependencies=needs("files"), responses=access.RESPONSES)

_PART_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "format": "binary"}},
}
# A client that lost patience asks again: the second completion waits for the first instead of doing its work again.
_completing: "WeakValueDictionary[str, asyncio.Lock]" = WeakValueDictionary()


@router.post("")
async def create_upload(body: UploadCreate, principal: Caller, session: WriteSession, resources: Opened) -> UploadRead:
    """Announce a file that will be sent in parts, within the next hour."""
    settings = resources.settings
    await quotas.require_upload(session, principal.project_id, settings, body.bytes)
    upload = await uploads.create(session, principal, body=body, max_bytes=settings.max_upload_bytes)
    added = {Limit.FILES: 1, Limit.STORED_BYTES: body.bytes}
    await quotas.keep(session, principal.project_id, settings, added)
    return _read(upload)


@router.post(
    "/{upload_id}/parts",
    response_model=UploadPartRead,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": _PART_FORM, "example": {"data": "(up to 64 MiB)"}}},
        }
    },
)
async def add_upload_part(upload_id: str, request: Request, principal: Caller, resources: Opened) -> UploadPartRead:
    """Send a part of up to 64 MiB. Their order is told at the end."""
    async with resources.read() as session:
        await uploads.require_room(session, principal, upload_id=upload_id)
        await quotas.require_left(session, principal.project_id, resources.settings, Limit.UPLOAD_BYTES_PER_DAY)
    part_id = new_id("part_")
    async with multipart.receive(
        request, multipart.PART, directory=_scratch(resources), max_file_bytes=uploads.MAX_PART_BYTES
    ) as form:
        stored = await resources.storage.put_file(keys.upload_part(principal.project_id, upload_id, part_id), form.file)
    async with removed_if_refused(resources.storage, stored), resources.write() as session:
        part = await uploads.add_part(session, principal, upload_id=upload_id, part_id=part_id, stored=stored)
        upload = await uploads.get(session, principal, upload_id=upload_id)
        await quotas.count_uploaded(session, principal, stored.bytes)
        added = {Limit.UPLOAD_BYTES_PER_DAY: stored.bytes}
        # All up to the size of the upload was counted as stored when that was announced.
        if (beyond := min(stored.bytes, upload.received_bytes - upload.bytes)) > 0:
            added[Limit.STORED_BYTES] = beyond
        await quotas.keep(session, principal.project_id, resources.settings, added)
    return UploadPartRead(id=part.id, created_at=unix(part.created_at), upload_id=part.upload_id)


@router.post("/{upload_id}/complete")
async def complete_upload(upload_id: str, body: UploadComplete, principal: Caller, resources: Opened) -> UploadRead:
    """Make a file of the parts, in the order given. To complete an upload again gives the same answer."""
    async with _completing.setdefault(upload_id, asyncio.Lock()):
        return await _complete(resources, principal, upload_id, body)


@router.post("/{upload_id}/cancel")
async def cancel_upload(upload_id: str, principal: Caller, session: WriteSession) -> UploadRead:
    return _read(await uploads.cancel(session, principal, upload_id=upload_id))


async def _complete(resources: Resources, principal: Principal, upload_id: str, body: UploadComplete) -> UploadRead:
    try:
        return await _assemble(resources, principal, upload_id, body)
    except InvalidRequest:
        # Another process may have completed it meanwhile, and a sweep have removed the parts that are missed here.
        async with resources.read() as session:
            upload = await uploads.get(session, principal, upload_id=upload_id)
            if upload.status != UploadStatus.COMPLETED:
                raise
            return _read(upload, await uploads.file_of(session, principal, upload))


async def _assemble(resources: Resources, principal: Principal, upload_id: str, body: UploadComplete) -> UploadRead:
    async with resources.read() as session:
        upload = await uploads.get(session, principal, upload_id=upload_id)
        if upload.status == UploadStatus.COMPLETED:
            return _read(upload, await uploads.file_of(session, principal, upload))
        parts = await uploads.chosen(session, principal, upload, part_ids=body.part_ids)
    with multipart.temporary(_scratch(resources)) as whole:
        await uploads.assemble(resources.storage, parts, whole, md5=body.md5)
        file_id, stored = await files.store(
            resources.storage,
            principal,
            whole,
            purpose=upload.purpose,
            max_line_bytes=resources.settings.max_line_bytes,
        )
    async with removed_if_refused(resources.storage, stored), resources.write() as session:
        upload = await uploads.complete(session, principal, upload_id=upload_id, file_id=file_id, stored=stored)
        file = await uploads.file_of(session, principal, upload)
    return _read(upload, file)


def _scratch(resources: Resources) -> Path:
    return resources.settings.data / "uploads"


def _read(upload: Upload, file: File | None = None) -> UploadRead:
    return UploadRead(
        id=upload.id,
        bytes=upload.bytes,
        created_at=unix(upload.created_at),
        expires_at=unix(upload.expires_at),
        filename=upload.filename,
        purpose=upload.purpose,
        status=uploads.status_of(upload).value,
        file=None if file is None else file_to_read(file),
    )
