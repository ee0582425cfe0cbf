"""Lists of organizations' things, all of one form."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field

from app.api.deps import PLAIN_INTEGER
from app.schemas.organization import Page

Listed = TypeVar("Listed", bound=Page)
Limit = Annotated[int, Field(ge=0, le=100), PLAIN_INTEGER]


def page(kind: type[Listed], data: Sequence[Any], *, has_more: bool) -> Listed:
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return kind.model_validate({"data": data, "first_id": first, "last_id": last, "has_more": has_more})
