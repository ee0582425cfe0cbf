"""Times on the wire are whole unix seconds."""

import re
from datetime import datetime

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

MAX_UNIX = 32503680000  # the year 3000


def unix(moment: datetime) -> int:
    return int(moment.timestamp())


def unix_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else unix(moment)


def _seconds(value: object) -> object:
    """Python would also take "1_0", " 5" and digits of other scripts."""
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,11}", value):
        raise PydanticCustomError("int_type", "expected whole unix seconds")
    return value


UNIX_TIME = BeforeValidator(_seconds)
