"""How a worker writes: in one transaction under its lease, tried again while the database is away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Job
from app.errors import Unavailable
from app.resources import Resources
from app.services import endings, leases
from app.services.leases import Lease

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
Result = TypeVar("Result")


async def write(
    resources: Resources, lease: Lease, change: Callable[[AsyncSession, Job, datetime], Awaitable[Result]]
) -> Result:
    """Run `change(session, job, now)` with the job locked. Raises LeaseLost when the job is no longer ours.

    `change` may run more than once; only its last run is committed.
    """
    while True:
        try:
            async with resources.write() as session:
                job, now = await leases.hold(session, lease)
                result = await change(session, job, now)
                await endings.after(session, job)
                return result
        except Unavailable:
            _log.warning("the database does not answer; job %s goes on and is written when it does", lease.job_id)
            await asyncio.sleep(_RETRY_SECONDS)
