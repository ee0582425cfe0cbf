"""Times on the wire are whole unix seconds."""

from datetime import datetime


def unix(moment: datetime) -> int:
    return int(moment.timestamp())


def unix_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else unix(moment)
