"""Pieces that several wire objects share."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from app.schemas import examples


class Wire(BaseModel):
    """No conversions: "7" is not a number and true is not 1. Unknown fields are ignored, as at OpenAI."""

    # Answers hold every field: the document may say so.
    model_config = ConfigDict(strict=True, json_schema_serialization_defaults_required=True)


def storable(text: str) -> str:
    """PostgreSQL takes no NUL, and half of a surrogate pair has no UTF-8 form."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise PydanticCustomError("surrogate", "expected valid Unicode text")
    if "\0" in text:
        raise PydanticCustomError("nul_character", "expected text without NUL characters")
    return text


Text = Annotated[str, AfterValidator(storable)]


class ErrorBody(Wire):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(Wire):
    """What every answer with a status of 400 or above holds."""

    model_config = examples.ERROR

    error: ErrorBody


class Health(Wire):
    status: Literal["ok"]


class Readiness(Health):
    queue: Literal["ok", "away"]
