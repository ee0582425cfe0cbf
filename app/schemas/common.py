"""Pieces that several wire objects share."""

from typing import Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from app.schemas import examples


class Wire(BaseModel):
    """No conversions: "7" is not a number and true is not 1. Unknown fields are ignored, as at OpenAI."""

    # Answers hold every field: the document may say so.
    model_config = ConfigDict(strict=True, json_schema_serialization_defaults_required=True)


def whole(value: object) -> object:
    """JSON knows one kind of number: 3.0 is the integer 3, and that is how some clients' languages write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(whole)


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
    model_config = examples.HEALTH

    status: Literal["ok"]


class Readiness(Health):
    model_config = examples.READINESS

    queue: Literal["ok", "away"]
