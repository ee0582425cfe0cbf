"""The secrets that the database holds, as their operator sees them: sealed or not, with which key, readable or not.

They are those of webhook endpoints. Earlier versions stored them as they are; a migration has no key, so the first
start seals them (`app.secret_upkeep`).
"""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.webhook_models import WebhookEndpoint
from app.sealing import CannotUnseal, Sealer
from app.services import webhook_signing

_AT_ONCE = 500


class Seal(StrEnum):
    NOTHING = "nothing"
    WHAT_IS_CLEAR = "what is clear"
    WITH_THE_FIRST_KEY = "with the first key"


@dataclass(frozen=True)
class Count:
    """Of webhook endpoints: those `clear` that were found so, those `sealed` now, and those that no key opens."""

    seen: int = 0
    clear: int = 0
    sealed: int = 0
    unreadable: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.seen + other.seen,
            self.clear + other.clear,
            self.sealed + other.sealed,
            self.unreadable + other.unreadable,
        )


async def go_through(session: AsyncSession, sealer: Sealer, what: Seal, *, after: str) -> tuple[Count, str | None]:
    """The next endpoints by their ids, and the last one's id, None at the end.

    What cannot be read stays as it is: its key may be found again. Raises CannotSeal.
    """
    query = select(WebhookEndpoint).where(WebhookEndpoint.id > after).order_by(WebhookEndpoint.id).limit(_AT_ONCE)
    found = (await session.scalars(query if what is Seal.NOTHING else query.with_for_update())).all()
    count = Count()
    for endpoint in found:
        count += _look_at(endpoint, sealer, what)
    return count, found[-1].id if found else None


def clear_text(stored: str, sealer: Sealer) -> str:
    """Raises CannotUnseal."""
    return stored if _is_clear(stored) else sealer.unseal(stored)


def _look_at(endpoint: WebhookEndpoint, sealer: Sealer, what: Seal) -> Count:
    all_of_it = [endpoint.secret, *(kept["secret"] for kept in endpoint.old_secrets)]
    clear = any(map(_is_clear, all_of_it))
    try:
        for stored in all_of_it:
            clear_text(stored, sealer)
    except CannotUnseal:
        return Count(seen=1, clear=clear, unreadable=1)
    by_another = not all(map(sealer.is_by_the_first_key, all_of_it))
    if (what is Seal.WHAT_IS_CLEAR and clear) or (what is Seal.WITH_THE_FIRST_KEY and by_another):
        endpoint.secret, *old = (sealer.seal(clear_text(stored, sealer)) for stored in all_of_it)
        endpoint.old_secrets = [
            kept | {"secret": secret} for kept, secret in zip(endpoint.old_secrets, old, strict=True)
        ]
        return Count(seen=1, clear=clear, sealed=1)
    return Count(seen=1, clear=clear)


def _is_clear(stored: str) -> bool:
    return stored.startswith(webhook_signing.PREFIX)
