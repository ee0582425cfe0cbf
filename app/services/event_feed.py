"""A job's events in the order they happened, for those who follow them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.models import TERMINAL, Event, Job
from app.db.queries import scoped
from app.errors import InvalidRequest
from app.services import jobs, lookup

START = 0
_MOST_AT_ONCE = 100


@dataclass(frozen=True)
class News:
    """Up to 100 events after a place in the sequence. `is_last`: nothing will follow them."""

    events: Sequence[Event]
    is_last: bool


async def place_of(session: AsyncSession, principal: Principal, *, job_id: str, event_id: str | None) -> int:
    """The sequence number of an event of the job, or START. Raises NotFound and InvalidRequest."""
    job = await jobs.get(session, principal, job_id=job_id)
    if event_id is None:
        return START
    events = scoped(Event, principal).where(Event.job_id == job.id)
    event = await lookup.find(session, events, Event.id, event_id)
    if event is None:
        raise InvalidRequest(f"No item with id '{lookup.shown(event_id)}' is in this list.", param="after")
    return event.sequence


async def after(session: AsyncSession, principal: Principal, *, job_id: str, place: int) -> News:
    """Mostly there is nothing new, which is told by two columns of one row."""
    query = scoped(Job, principal).where(Job.id == job_id).with_only_columns(Job.status, Job.event_sequence)
    row = (await session.execute(query)).one_or_none()
    if row is None:
        return News((), is_last=True)
    status, last = row  # read before the events: an end and its event come in one transaction, so none is missed
    events: Sequence[Event] = ()
    if last > place:
        newer = scoped(Event, principal).where(Event.job_id == job_id, Event.sequence > place)
        events = list(await session.scalars(newer.order_by(Event.sequence).limit(_MOST_AT_ONCE)))
    reached = events[-1].sequence if events else place
    return News(events, is_last=status in TERMINAL and reached >= last)
