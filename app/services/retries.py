"""Requests that are sent again: one whose answer was lost must not create a second job.

Who sends an `Idempotency-Key` gets one job for it, for a day. OpenAI's clients send none, but count their attempts:
a repeated attempt with the same bytes and the same API key, minutes after one that created a job, gets that job.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Principal
from app.db.models import Job
from app.db.queries import alone, database_now, due, scoped
from app.db.retry_models import JobRequest
from app.errors import InvalidRequest
from app.ids import new_id
from app.schemas.jobs import JobCreate
from app.services import jobs

KEYS_LAST = timedelta(hours=24)
ATTEMPTS_LAST = timedelta(minutes=10)  # a client waits ten minutes for an answer at most, unless told otherwise
REUSED = "This Idempotency-Key was used for a request with another body. Use a new key for a new request."
_KEY = re.compile(r"[ -~]{1,255}")
_COUNT = re.compile(r"[0-9]{1,4}")


class KeyReused(InvalidRequest):
    """As the draft of the header's standard has it; clients do not retry a 422."""

    status = 422


@dataclass(frozen=True)
class Attempt:
    """What tells a request that repeats another. Clients other than OpenAI's have no `retry_count`."""

    body_sha256: str
    idempotency_key: str | None = None
    retry_count: int | None = None


def attempt(body: bytes, *, keys: list[str], counts: list[str]) -> Attempt:
    """From a request's bytes and the values of its headers. Raises InvalidRequest."""
    if len(keys) > 1 or not all(_KEY.fullmatch(key) for key in keys):
        sentence = "Expected one Idempotency-Key, of 1 to 255 printable ASCII characters."
        raise InvalidRequest(sentence, code="invalid_idempotency_key")
    count = int(counts[0]) if len(counts) == 1 and _COUNT.fullmatch(counts[0]) else None
    return Attempt(hashlib.sha256(body).hexdigest(), keys[0] if keys else None, None if keys else count)


async def create_job(
    session: AsyncSession,
    principal: Principal,
    *,
    made: Attempt,
    body: JobCreate,
    max_sequence_tokens: int | None = None,
    trackers: frozenset[str] = frozenset(),
) -> tuple[Job, bool]:
    """The job of the request, as it is now, and whether an earlier attempt had created it already.

    What was refused is not remembered. Of requests at the same time, one creates the job and the others wait for it.
    Raises InvalidRequest, or KeyReused for a key that another body has used.
    """
    create = partial(jobs.create, max_sequence_tokens=max_sequence_tokens, trackers=trackers)
    if made.idempotency_key is None and made.retry_count is None:
        return await create(session, principal, body=body), False
    same = made.idempotency_key or f"{principal.key_id} {made.body_sha256}"
    await alone(session, f"job request {principal.project_id} {same}")
    if made.idempotency_key is not None:
        earlier = await _with_key(session, principal, made)
    else:
        earlier = await _attempt_before(session, principal, made)
    if earlier is not None:
        return await jobs.get(session, principal, job_id=earlier.job_id), True
    job = await create(session, principal, body=body)
    row = JobRequest(
        id=new_id("jobreq_"),
        project_id=principal.project_id,
        job_id=job.id,
        api_key_id=principal.key_id,
        created_at=await database_now(session),
        **vars(made),
    )
    session.add(row)
    return job, False


async def forget_old(session: AsyncSession, *, most: int = 1000) -> bool:
    """Drop some of what is remembered for longer than any key lasts; whether there may be more of it.

    Workers may do this at the same time: each takes what the others have not.
    """
    before = await database_now(session) - KEYS_LAST
    query = due(JobRequest.created_at, before).limit(most).with_for_update(skip_locked=True)
    old = list(await session.scalars(query))
    for row in old:
        await session.delete(row)
    return len(old) == most


async def _with_key(session: AsyncSession, principal: Principal, made: Attempt) -> JobRequest | None:
    query = scoped(JobRequest, principal).where(JobRequest.idempotency_key == made.idempotency_key)
    found = await session.scalar(query)
    if found is None:
        return None
    if found.created_at <= await database_now(session) - KEYS_LAST:
        await session.delete(found)
        await session.flush()  # before another row takes its key
        return None
    if found.body_sha256 != made.body_sha256:
        raise KeyReused(REUSED, code="idempotency_key_reused")
    return found


async def _attempt_before(session: AsyncSession, principal: Principal, made: Attempt) -> JobRequest | None:
    """Each repetition takes up one request: two that were meant, and lost, stay two.

    The first attempt is always a request of its own, however much it looks like another.
    """
    if not made.retry_count:
        return None
    query = (
        scoped(JobRequest, principal)
        .where(
            JobRequest.api_key_id == principal.key_id,
            JobRequest.body_sha256 == made.body_sha256,
            JobRequest.retry_count < made.retry_count,
            JobRequest.created_at > await database_now(session) - ATTEMPTS_LAST,
        )
        .order_by(JobRequest.retry_count.desc(), JobRequest.created_at.desc())
        .limit(1)
    )
    found = await session.scalar(query)
    if found is not None:
        found.retry_count = made.retry_count
    return found
