"""What tells that a request repeats another: its bytes, its `Idempotency-Key`, the count of OpenAI's clients."""

from typing import Annotated, Any

from fastapi import Depends, Header, Request

from app.schemas.common import ErrorEnvelope
from app.services import retries
from app.services.retries import Attempt

REPEATED: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorEnvelope, "description": "The `Idempotency-Key` was used for a request with another body."}
}


async def this_attempt(
    request: Request,
    _documented: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="1 to 255 printable characters of the client's choice, kept for 24 hours.",
        ),
    ] = None,
) -> Attempt:
    """The body was read, and kept, when its schema was checked."""
    headers = request.headers
    return retries.attempt(
        await request.body(),
        keys=headers.getlist("idempotency-key"),
        counts=headers.getlist("x-stainless-retry-count"),
    )


ThisAttempt = Annotated[Attempt, Depends(this_attempt)]
