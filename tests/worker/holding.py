"""A job that a test holds a lease on, as a worker would."""

from typing import Any

from app.db.models import JobStatus
from app.resources import Resources
from app.services import leases
from app.services.leases import Lease
from tests import factories


async def held_job(resources: Resources, **columns: Any) -> Lease:
    principal, _ = await factories.project(resources)
    await factories.job(resources, principal, status=JobStatus.QUEUED, **columns)
    async with resources.write() as session:
        claimed = await leases.claim(session, owner="worker-test/0", status=JobStatus.QUEUED, ttl_seconds=60)
    assert claimed is not None
    return claimed[0]
