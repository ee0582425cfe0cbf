"""Uploads on the wire: files that arrive in parts."""

from typing import Annotated, Literal

from pydantic import Field

from app.schemas import examples
from app.schemas.common import WHOLE, Wire
from app.schemas.files import ExpiresAfter, FileRead, Purpose
from worker.contract.text import Text


class UploadCreate(Wire):
    model_config = examples.UPLOAD_CREATE

    bytes: Annotated[int, WHOLE, Field(ge=0)]
    filename: Text
    mime_type: Text = Field(description="Any: what counts is what the file holds.")
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class UploadComplete(Wire):
    model_config = examples.UPLOAD_COMPLETE

    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    md5: Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")] | None = Field(
        default=None, description="Of the whole file, in hexadecimal."
    )


class UploadRead(Wire):
    model_config = examples.UPLOAD

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileRead | None


class UploadPartRead(Wire):
    model_config = examples.UPLOAD_PART

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
