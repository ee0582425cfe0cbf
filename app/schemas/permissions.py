"""Checkpoint permissions on the wire."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from app.schemas import examples
from app.schemas.common import Wire
from worker.contract.text import Text


class PermissionCreate(Wire):
    """Other fields are refused, as at OpenAI."""

    model_config = examples.PERMISSION_CREATE | ConfigDict(extra="forbid")
    project_ids: Annotated[
        list[Text], Field(min_length=1, max_length=100, description="Projects of the same organization.")
    ]


class PermissionRead(Wire):
    model_config = examples.PERMISSION

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str = Field(description="The project that may use the model or checkpoint.")


class PermissionList(Wire):
    model_config = examples.PERMISSIONS

    object: Literal["list"] = "list"
    data: list[PermissionRead]
    first_id: str | None
    last_id: str | None
    has_more: bool


class PermissionDeleted(Wire):
    model_config = examples.PERMISSION_DELETED

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: Literal[True] = True
