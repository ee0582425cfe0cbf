"""A job's events: numbered without gaps by a counter on the job row."""

from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Event, Job
from app.ids import new_id


def add(
    session: AsyncSession,
    job: Job,
    message: str,
    *,
    now: datetime,
    level: str = "info",
    type: str = "message",  # noqa: A002 - the wire's word
    data: dict[str, Any] | None = None,
) -> Event:
    """Append an event. The session must hold the job row (a write session, or a lease's guard)."""
    # It may quote a file, whose strings hold what PostgreSQL takes in no text.
    storable = message.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    job.event_sequence += 1
    event = Event(
        id=new_id("ftevent-"),
        job_id=job.id,
        project_id=job.project_id,
        sequence=job.event_sequence,
        created_at=now,
        level=level,
        type=type,
        message=storable,
        data=data,
    )
    session.add(event)
    return event
