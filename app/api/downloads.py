"""Sending an object from storage: as an attachment, verifiable, and resumable from any byte."""

import base64
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import StreamingResponse

from app.errors import ApiError
from app.storage.base import Storage

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)

# For the OpenAPI document.
RESPONSES = {
    200: {"description": "The bytes.", "content": {"application/octet-stream": {}}},
    206: {"description": "The bytes of the range asked for.", "content": {"application/octet-stream": {}}},
}


class RangeNotSatisfiable(ApiError):
    status = 416


@dataclass(frozen=True)
class Download:
    storage_key: str
    bytes: int
    sha256: str
    filename: str


async def respond(request: Request, storage: Storage, download: Download) -> StreamingResponse:
    """One range is honoured; several, or one that makes no sense, are answered with the whole, as HTTP allows."""
    etag = f'"{download.sha256}"'
    first, last = 0, download.bytes - 1
    wanted = None
    if request.headers.get("if-range", etag) == etag:
        wanted = _wanted_range(request.headers.get("range", ""), download.bytes)
    if wanted is not None:
        first, last = wanted
    length = last - first + 1
    digest = base64.b64encode(bytes.fromhex(download.sha256)).decode()
    headers = {
        "Content-Disposition": _disposition(download.filename),
        "Content-Length": str(length),
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{digest}:",
        "X-Content-Type-Options": "nosniff",
    }
    if wanted is not None:
        headers["Content-Range"] = f"bytes {first}-{last}/{download.bytes}"
    chunks = storage.read(download.storage_key, start=first)
    start = await anext(chunks, b"")  # before the status leaves: an object that is missing must not be a 200
    return StreamingResponse(
        _exactly(length, start, chunks),
        status_code=200 if wanted is None else 206,
        headers=headers,
        media_type="application/octet-stream",
    )


async def _exactly(length: int, start: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    chunk = start
    while chunk and length > 0:
        yield chunk[:length]
        length -= len(chunk)
        chunk = await anext(chunks, b"") if length > 0 else b""


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
