"""Models on the wire."""

from typing import Literal

from app.schemas.common import Wire


class ModelRead(Wire):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[ModelRead]


class ModelDeleted(Wire):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
