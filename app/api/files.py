"""/v1/files"""

import os
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from app.api import access, downloads, multipart
from app.api.access import needs
from app.api.deps import MAY_BE_EMPTY, PLAIN_INTEGER, After, Caller, Opened, ReadSession, WriteSession
from app.api.times import unix, unix_or_none
from app.db.audit_models import Action
from app.db.models import File
from app.schemas import examples
from app.schemas.files import FileCreate, FileDeleted, FileList, FileRead
from app.services import files, quotas
from app.services.objects import removed_if_refused
from app.services.quotas import Limit
from app.storage.base import StoredObject

router = APIRouter(prefix="/v1/files", tags=["Files"], dependencies=needs("files"), responses=access.RESPONSES)

_COUNTED = (Limit.FILES, Limit.STORED_BYTES, Limit.UPLOAD_BYTES_PER_DAY)
_UPLOAD_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": FileCreate.model_json_schema()["properties"]["purpose"],
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
}


@router.post(
    "",
    response_model=FileRead,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": _UPLOAD_FORM, "example": examples.FILE_FORM}},
        }
    },
)
async def create_file(request: Request, principal: Caller, resources: Opened) -> FileRead:
    """Upload a file. One for fine-tuning must be JSONL."""
    settings = resources.settings
    uploads = settings.data / "uploads"
    async with resources.read() as session:
        await quotas.require_left(session, principal.project_id, settings, *_COUNTED)
    async with multipart.receive(
        request, multipart.FILE, directory=uploads, max_file_bytes=settings.max_file_bytes
    ) as form:
        body = form.parse(FileCreate)
        filename = files.check_name(form.filename, purpose=body.purpose)
        async with resources.read() as session:
            await quotas.require_upload(session, principal.project_id, settings, form.file.seek(0, os.SEEK_END))
        form.file.seek(0)
        file_id, stored = await files.store(
            resources.storage, principal, form.file, purpose=body.purpose, max_line_bytes=settings.max_line_bytes
        )
    async with removed_if_refused(resources.storage, stored), resources.write() as session:
        file = await files.create(session, principal, file_id=file_id, stored=stored, filename=filename, body=body)
        await quotas.count_uploaded(session, principal, stored.bytes)
        added: dict[Limit, int] = dict(zip(_COUNTED, (1, stored.bytes, stored.bytes), strict=True))
        await quotas.keep(session, principal.project_id, settings, added)
    return to_read(file)


@router.get("")
async def list_files(
    principal: Caller,
    session: ReadSession,
    after: After = None,
    limit: Annotated[int, Field(ge=0, le=10000), PLAIN_INTEGER] = 10000,
    order: Annotated[Literal["asc", "desc"], MAY_BE_EMPTY] = "desc",
    purpose: Annotated[str | None, MAY_BE_EMPTY] = None,
) -> FileList:
    """List the project's files, newest first."""
    page = await files.search(session, principal, purpose=purpose, after=after, limit=limit, order=order)
    data = [to_read(file) for file in page.rows]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


@router.get("/{file_id}")
async def retrieve_file(file_id: str, principal: Caller, session: ReadSession) -> FileRead:
    return to_read(await files.get(session, principal, file_id=file_id))


@router.delete("/{file_id}")
async def delete_file(file_id: str, principal: Caller, session: WriteSession) -> FileDeleted:
    return FileDeleted(id=(await files.delete(session, principal, file_id=file_id)).id)


@router.head("/{file_id}/content", include_in_schema=False)
@router.get("/{file_id}/content", response_class=StreamingResponse, responses={**downloads.RESPONSES})
async def download_file(file_id: str, request: Request, principal: Caller, resources: Opened) -> Response:
    """The bytes as they were uploaded. A single `Range` is honoured."""
    async with resources.read() as session:
        file = await files.get(session, principal, file_id=file_id)
    stored = StoredObject(file.storage_key, file.bytes, file.sha256)
    download = downloads.Download(stored, file.filename, Action.FILE_DOWNLOADED, file.id)
    return await downloads.respond(request, principal, resources.storage, download)


def to_read(file: File) -> FileRead:
    return FileRead(
        id=file.id,
        bytes=file.bytes,
        created_at=unix(file.created_at),
        expires_at=unix_or_none(file.expires_at),
        filename=file.filename,
        purpose=files.wire_purpose(file),  # pyright: ignore[reportArgumentType] - only words that were checked
        status=file.status,  # pyright: ignore[reportArgumentType] - the column holds only these words
    )
