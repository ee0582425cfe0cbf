"""Sending an object from storage: as an attachment, verifiable, and resumable from any byte."""

import base64
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from app.api.trail import Trail
from app.auth import Principal
from app.db.audit_models import Action
from app.errors import ApiError
from app.observability import tally
from app.storage import verified
from app.storage.base import ObjectCorrupt, Storage, StoredObject

_log = logging.getLogger(__name__)
_MEDIA_TYPE = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)

# For the OpenAPI document.
RESPONSES = {
    200: {"description": "The bytes.", "content": {"application/octet-stream": {}}},
    206: {"description": "The bytes of the range asked for.", "content": {"application/octet-stream": {}}},
    307: {"description": "The bytes are at `Location` for five minutes, if the server's storage is open to clients."},
}


class RangeNotSatisfiable(ApiError):
    status = 416


@dataclass(frozen=True)
class Download:
    """`action` and `target_id` are what the audit log says of it."""

    stored: StoredObject
    filename: str
    action: Action
    target_id: str


async def respond(request: Request, principal: Principal, storage: Storage, download: Download) -> Response:
    """One range is honoured; several, or one that makes no sense, are answered with the whole, as HTTP allows.

    To be called with no session open: storage may take its time.
    """
    stored, disposition = download.stored, _disposition(download.filename)
    if request.method == "HEAD":
        await storage.stat(stored.key)  # an object that is missing must not be a 200
        return Response(headers=_headers(stored, disposition), media_type=_MEDIA_TYPE)
    if url := await storage.download_url(stored.key, disposition=disposition):
        _note(request, principal, download)
        return RedirectResponse(url, status_code=307, headers={"Cache-Control": "no-store"})
    wanted = None
    if request.headers.get("if-range", _etag(stored)) == _etag(stored):
        wanted = _wanted_range(request.headers.get("range", ""), stored.bytes)
    headers = _headers(stored, disposition)
    if wanted is None:
        chunks = _logged(stored, verified.read(storage, stored))
    else:
        first, last = wanted
        headers["Content-Length"] = str(last - first + 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{stored.bytes}"
        chunks = storage.read(stored.key, start=first, end=last + 1)
    start = await anext(chunks, b"")  # before the status leaves, for the same reason
    _note(request, principal, download)
    return StreamingResponse(
        _joined(start, chunks), status_code=200 if wanted is None else 206, headers=headers, media_type=_MEDIA_TYPE
    )


def _note(request: Request, principal: Principal, download: Download) -> None:
    trail: Trail = request.app.state.trail
    trail.note(principal, download.action, download.target_id)


async def _joined(start: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    async for chunk in chunks:
        yield chunk


async def _logged(stored: StoredObject, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The error then breaks the answer off, so that no client takes it for whole."""
    try:
        async for chunk in chunks:
            yield chunk
    except ObjectCorrupt:
        tally["corrupt downloads"] += 1
        so_far = tally["corrupt downloads"]
        _log.error("object %s is not what was recorded: its download is cut (%d so far)", stored.key, so_far)
        raise


def _etag(stored: StoredObject) -> str:
    return f'"{stored.sha256}"'


def _headers(stored: StoredObject, disposition: str) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(stored.sha256)).decode()
    return {
        "Content-Disposition": disposition,
        "Content-Length": str(stored.bytes),
        "Accept-Ranges": "bytes",
        "ETag": _etag(stored),
        "Repr-Digest": f"sha-256=:{digest}:",
        "X-Content-Type-Options": "nosniff",
    }


def _wanted_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte, or None for the whole. Raises RangeNotSatisfiable."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    start, end = match.groups()
    if not start:
        first, last = max(size - int(end), 0), size - 1
    else:
        first, last = int(start), min(int(end or size - 1), size - 1)
        if end and int(end) < first:
            return None
    if first >= size or (not start and int(end) == 0):
        headers = {"Content-Range": f"bytes */{size}"}
        raise RangeNotSatisfiable(f"The range is outside of the {size} bytes.", headers=headers)
    return first, last


def _disposition(filename: str) -> str:
    """A plain name for old clients, and the exact one in RFC 8187's encoding where they differ."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in filename)
    if plain == filename:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
