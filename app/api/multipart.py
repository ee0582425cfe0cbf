"""Receiving one uploaded file of a multipart form straight into a temporary file, under limits.

The temporary file has no name: whatever ends this process, its space is free again at once.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import InvalidRequest, TooLarge
from app.schemas.files import FileCreate

_WRITE_BYTES = 1 << 20
_MAX_FIELD_BYTES = 4096
_MAX_PARTS = 16
_MAX_OVERHEAD_BYTES = 256 * 1024  # boundaries, part headers and fields beside the file
_FIELDS = re.compile(r"purpose|expires_after\[(anchor|seconds)\]")


@dataclass
class Form:
    file: BinaryIO
    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""

    def parse(self) -> FileCreate:
        """The fields beside the file. Raises RequestValidationError."""
        nested: dict[str, Any] = {}
        for name, value in self.fields.items():
            outer, _, inner = name.rstrip("]").partition("[")
            if inner:
                nested.setdefault(outer, {})[inner] = value
            else:
                nested[outer] = value
        return _validate(FileCreate, nested)


@asynccontextmanager
async def receive(request: Request, *, directory: Path, max_file_bytes: int) -> AsyncIterator[Form]:
    """Reads the whole body. The form's temporary file is gone when the block ends."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_file_bytes + _MAX_OVERHEAD_BYTES:
        raise _too_large(max_file_bytes)
    boundary = _boundary(request)
    with _temporary(directory) as file:
        receiver = _Receiver(Form(file), max_file_bytes)
        parser = MultipartParser(boundary, receiver.callbacks())  # pyright: ignore[reportArgumentType]
        async for chunk in request.stream():
            try:
                parser.write(chunk)
            except FormParserError as error:
                raise InvalidRequest("The multipart form is malformed.") from error
            if receiver.pending_bytes >= _WRITE_BYTES:
                await asyncio.to_thread(file.write, receiver.take())
        if not receiver.is_complete:
            raise InvalidRequest("The multipart form is incomplete: its closing boundary is missing.")
        if receiver.file_bytes == 0:
            missing = "The file is empty." if receiver.form.filename else "Missing required parameter: 'file'."
            raise InvalidRequest(missing, param="file")
        await asyncio.to_thread(_finish, file, receiver.take())
        yield receiver.form


class _Receiver:
    """Takes the parser's callbacks; file bytes are kept until the caller writes them."""

    def __init__(self, form: Form, max_file_bytes: int) -> None:
        self.form = form
        self.file_bytes = 0
        self.pending_bytes = 0
        self.is_complete = False
        self._max_file_bytes = max_file_bytes
        self._pending: list[bytes] = []
        self._num_parts = 0
        self._name_bytes, self._value_bytes = b"", b""
        self._disposition = b""
        self._field_name: str | None = None  # None inside the file's part
        self._field = b""

    def callbacks(self) -> Mapping[str, Any]:
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end")
        return {f"on_{name}": getattr(self, f"_{name}") for name in (*names, "headers_finished", "end")}

    def take(self) -> bytes:
        data, self._pending, self.pending_bytes = b"".join(self._pending), [], 0
        return data

    def _part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise InvalidRequest("The multipart form has too many parts.")
        self._disposition, self._field, self._field_name = b"", b"", None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name_bytes += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value_bytes += data[start:end]

    def _header_end(self) -> None:
        if self._name_bytes.lower() == b"content-disposition":
            self._disposition = self._value_bytes
        self._name_bytes, self._value_bytes = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "file":
            if b"filename" not in options:
                raise InvalidRequest("'file' must be sent as a file, with a filename.", param="file")
            if self.form.filename:
                raise InvalidRequest("Only one file can be uploaded at a time.", param="file")
            self.form.filename = options[b"filename"].decode("utf-8", "replace")
            if not self.form.filename:
                raise InvalidRequest("The file has no name.", param="file")
            return
        shown = "".join(c if c.isprintable() else "?" for c in name[:64])
        if not _FIELDS.fullmatch(name):
            raise InvalidRequest(f"Unknown parameter: '{shown}'.", code="unknown_parameter", param=shown)
        if b"filename" in options:
            raise InvalidRequest(f"'{shown}' must be sent as a field, not as a file.", param=shown)
        if name in self.form.fields:
            raise InvalidRequest(f"The parameter '{shown}' was given twice.", param=shown)
        self._field_name = name

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field_name is not None:
            self._field += data[start:end]
            if len(self._field) > _MAX_FIELD_BYTES:
                raise InvalidRequest(f"The value of '{self._field_name}' is too long.", param=self._field_name)
            return
        self.file_bytes += end - start
        if self.file_bytes > self._max_file_bytes:
            raise _too_large(self._max_file_bytes)
        self._pending.append(data[start:end])
        self.pending_bytes += end - start

    def _part_end(self) -> None:
        if self._field_name is not None:
            self.form.fields[self._field_name] = self._field.decode("utf-8", "replace")

    def _end(self) -> None:
        self.is_complete = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data":
        raise InvalidRequest("A file must be sent as multipart/form-data.")
    if not 1 <= len(boundary) <= 200:
        raise InvalidRequest("The Content-Type header names no valid boundary.")
    return boundary


def _temporary(directory: Path) -> AbstractContextManager[BinaryIO]:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return TemporaryFile(dir=directory)


def _finish(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()


def _validate(model: type[FileCreate], values: dict[str, Any]) -> FileCreate:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from error


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The file is larger than this server takes: {limit} bytes.", param="file")
