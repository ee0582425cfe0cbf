"""Text that databases can store: whatever a client sends may end in one."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def storable(text: str) -> str:
    """PostgreSQL takes no NUL, and half of a surrogate pair has no UTF-8 form."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise PydanticCustomError("surrogate", "expected valid Unicode text")
    if "\0" in text:
        raise PydanticCustomError("nul_character", "expected text without NUL characters")
    return text


Text = Annotated[str, AfterValidator(storable)]
