"""One signed POST to a receiver, and what came of it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from app import outgoing
from app.outgoing import LookUps, OutgoingFailed, OutgoingRefused
from app.services import webhook_signing
from app.settings import Settings

_OF_DELIVERIES = LookUps(64)


@dataclass(frozen=True)
class Outcome:
    """The status that the receiver answered with, or why it did not."""

    status: int | None = None
    error: str | None = None

    @property
    def is_success(self) -> bool:
        """A redirect is none: what is signed goes where its owner said and nowhere else."""
        return self.status is not None and 200 <= self.status < 300


async def send(
    settings: Settings,
    *,
    url: str,
    secrets: Iterable[str],
    message_id: str,
    body: bytes,
    look_ups: LookUps = _OF_DELIVERIES,
) -> Outcome:
    """Never raises for what a receiver does. What it says beside its status is not waited for, kept or shown."""
    signed = webhook_signing.headers(secrets, message_id=message_id, timestamp=int(time.time()), body=body)
    user_agent = f"Hone/{metadata.version('hone')}"
    try:
        answer = await outgoing.post(
            url,
            body=body,
            headers={"Content-Type": "application/json", "User-Agent": user_agent, **signed},
            timeout_seconds=settings.webhook_timeout_seconds,
            max_response_bytes=0,
            allowed_networks=settings.outgoing_allowed_networks,
            look_ups=look_ups,
        )
    except (OutgoingRefused, OutgoingFailed) as error:
        return Outcome(error=str(error))
    return Outcome(status=answer.status)
