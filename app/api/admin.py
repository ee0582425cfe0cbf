"""/v1/admin, for the operator: the worker processes and how they are doing."""

from fastapi import APIRouter

from app.api import errors
from app.api.access import needs
from app.api.deps import Opened, ReadSession, WriteSession
from app.api.times import unix, unix_or_none
from app.db.models import WorkerState
from app.schemas.admin import SlotRead, WorkerList, WorkerRead
from app.schemas.common import ErrorEnvelope
from app.services import workers
from app.services.workers import Seen

router = APIRouter(
    prefix="/v1/admin",
    tags=["Administration"],
    dependencies=needs("server"),
    responses={**errors.RESPONSES, 403: {"model": ErrorEnvelope, "description": "Not a key of the operator."}},
)


@router.get("/workers")
async def list_workers(session: ReadSession, resources: Opened) -> WorkerList:
    """List the worker processes, oldest first. Those that ended as planned are not in it."""
    found = await workers.search(session, silent_seconds=resources.settings.lease_seconds)
    return WorkerList(data=[read_worker(worker) for worker in found])


@router.post("/workers/{worker_id}/drain")
async def drain_worker(worker_id: str, session: WriteSession, resources: Opened) -> WorkerRead:
    """Ask a worker to write its runs' checkpoints, hand its jobs back and end. Repeating it changes nothing."""
    found = await workers.drain(session, worker_id=worker_id, silent_seconds=resources.settings.lease_seconds)
    return read_worker(found)


def read_worker(worker: Seen) -> WorkerRead:
    row = worker.row
    return WorkerRead(
        id=row.id,
        hostname=row.hostname,
        pid=row.pid,
        version=row.version,
        pool=row.pool,
        kinds=row.kinds,
        state="dead" if worker.is_dead else WorkerState(row.state).value,
        slots=[SlotRead(**slot, job_id=worker.jobs.get(f"{row.id}/{slot['number']}")) for slot in row.slots],
        unavailable_bases=row.unavailable_bases,
        started_at=unix(row.started_at),
        heartbeat_at=unix(row.heartbeat_at),
        drain_requested_at=unix_or_none(row.drain_requested_at),
    )
