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
from typing import Any, BinaryIO, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import InvalidRequest, TooLarge

Fields = TypeVar("Fields", bound=BaseModel)
_WRITE_BYTES = 1 << 20
_MAX_FIELD_BYTES = 4096
_MAX_PARTS = 16
_MAX_OVERHEAD_BYTES = 256 * 1024  # boundaries, part headers and fields beside the file


@dataclass(frozen=True)
class Shape:
    """What a form may hold: one file under this name, and fields that the pattern matches.

    `too_large` is the sentence for a file beyond the limit, with the place for its bytes.
    """

    file_name: str
    fields: re.Pattern[str]
    must_be_named: bool
    too_large: str


FILE = Shape(
    "file",
    re.compile(r"purpose|expires_after\[(anchor|seconds)\]"),
    must_be_named=True,
    too_large="The file is too large: this server takes at most {limit} bytes at once. "
    "Larger files can be sent in parts, through /v1/uploads.",
)
PART = Shape(
    "data", re.compile(r"(?!)"), must_be_named=False, too_large="The part is too large: it may have {limit} bytes."
)


@dataclass
class Form:
    shape: Shape
    file: BinaryIO
    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""

    def parse(self, model: type[Fields]) -> Fields:
        """The fields beside the file. Raises RequestValidationError."""
        nested: dict[str, Any] = {}
        for name, value in self.fields.items():
            outer, _, inner = name.rstrip("]").partition("[")
            if inner:
                nested.setdefault(outer, {})[inner] = value
            else:
                nested[outer] = value
        return _validate(model, nested)


@asynccontextmanager
async def receive(request: Request, shape: Shape, *, directory: Path, max_file_bytes: int) -> AsyncIterator[Form]:
    """Reads the whole body. The form's temporary file is gone when the block ends."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_file_bytes + _MAX_OVERHEAD_BYTES:
        raise _too_large(shape, max_file_bytes)
    boundary = _boundary(request)
    with temporary(directory) as file:
        receiver = _Receiver(Form(shape, file), max_file_bytes)
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
            name = shape.file_name
            missing = f"The {name} is empty." if receiver.has_file else f"Missing required parameter: '{name}'."
            raise InvalidRequest(missing, param=name)
        await asyncio.to_thread(_finish, file, receiver.take())
        yield receiver.form


class _Receiver:
    """Takes the parser's callbacks; file bytes are kept until the caller writes them."""

    def __init__(self, form: Form, max_file_bytes: int) -> None:
        self.form = form
        self.file_bytes = 0
        self.pending_bytes = 0
        self.is_complete = False
        self.has_file = False
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
        if name == self.form.shape.file_name:
            if self.has_file:
                raise InvalidRequest(f"Only one '{name}' can be uploaded at a time.", param=name)
            self.has_file = True
            self.form.filename = options.get(b"filename", b"").decode("utf-8", "replace")
            if self.form.shape.must_be_named:
                if b"filename" not in options:
                    raise InvalidRequest(f"'{name}' must be sent as a file, with a filename.", param=name)
                if not self.form.filename:
                    raise InvalidRequest("The file has no name.", param=name)
            return
        shown = "".join(c if c.isprintable() else "?" for c in name[:64])
        if not self.form.shape.fields.fullmatch(name):
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
            raise _too_large(self.form.shape, self._max_file_bytes)
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


def temporary(directory: Path) -> AbstractContextManager[BinaryIO]:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return TemporaryFile(dir=directory)


def _finish(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()


def _validate(model: type[Fields], values: dict[str, Any]) -> Fields:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from error


def _too_large(shape: Shape, limit: int) -> TooLarge:
    return TooLarge(shape.too_large.format(limit=limit), param=shape.file_name)
