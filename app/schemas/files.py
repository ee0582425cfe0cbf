"""Files on the wire."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from app.schemas import examples
from app.schemas.common import WHOLE, Wire

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
ShownPurpose = Literal["assistants", "batch", "fine-tune", "fine-tune-results", "vision", "user_data"]


def _digits(value: object) -> object:
    """Form fields are text; nothing but plain ASCII digits is taken for a number."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value


class ExpiresAfter(Wire):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000), BeforeValidator(_digits), WHOLE]


class FileCreate(Wire):
    """The fields of an upload's form beside the file itself."""

    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class FileRead(Wire):
    model_config = examples.FILE

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: ShownPurpose = Field(
        description="The purpose of the upload, or `fine-tune-results` for the files of a job. A file that was sent "
        "for `evals` is shown as `user_data`, because OpenAI's clients know no files for evaluations."
    )
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None = None


class FileList(Wire):
    model_config = examples.FILES

    object: Literal["list"] = "list"
    data: list[FileRead]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Wire):
    model_config = examples.FILE_DELETED

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
