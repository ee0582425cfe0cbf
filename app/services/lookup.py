"""Finding rows by the ids that clients send, and walking lists of them by cursor."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app.errors import InvalidRequest

Row = TypeVar("Row")
# Anything else cannot be one of our ids, and need not reach a database that might choke on it (NUL, 5000 characters).
_PLAUSIBLE = re.compile(r"[A-Za-z0-9_:./\-]{1,256}")
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Page(Generic[Row]):
    rows: Sequence[Row]
    has_more: bool


async def find(
    session: AsyncSession, query: Select[Row], column: InstrumentedAttribute[str], wanted: str
) -> Row | None:
    """The row of `query` whose `column` is `wanted`, which is text from a client."""
    if not _PLAUSIBLE.fullmatch(wanted):
        return None
    return await session.scalar(query.where(column == wanted))


async def page(
    session: AsyncSession,
    query: Select[Row],
    *,
    cursor: InstrumentedAttribute[str],
    order: Sequence[InstrumentedAttribute[Any]],
    after: str | None,
    limit: int,
    ascending: bool = False,
    param: str = "after",
) -> Page[Row]:
    """Up to `limit` rows that follow the row whose `cursor` column is `after`.

    `order` names the columns that put the rows in a total order: descending, or ascending if asked for. `param` is
    what the client calls `after`.
    """
    if after is not None:
        anchor = await find(session, query, cursor, after)
        if anchor is None:
            raise InvalidRequest(f"No item with id '{shown(after)}' is in this list.", param=param)
        place = tuple(getattr(anchor, column.key) for column in order)
        query = query.where(tuple_(*order) > place if ascending else tuple_(*order) < place)
    query = query.order_by(*(column.asc() if ascending else column.desc() for column in order)).limit(limit + 1)
    rows = list(await session.scalars(query))
    return Page(rows[:limit], has_more=len(rows) > limit)


def shown(text: str) -> str:
    """A client's text as an error message may repeat it: short, and nothing that does not print."""
    return "".join(c if c.isprintable() else "?" for c in text[:_SHOWN_CHARACTERS])
