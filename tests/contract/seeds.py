"""The things that openai-python's tests name by fixed ids, as rows: made by the test, by no door of the server's."""

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, insert

from app.auth import Principal, hash_key
from app.db.audit_models import AuditEntry
from app.db.base import Base
from app.db.models import ApiKey, Checkpoint, Event, FineTunedModel, JobStatus, Organization, Project
from app.db.queries import of_job
from app.ids import utc_now
from app.resources import Resources
from tests import factories

KEY = "My API Key"
BASE_MODEL = "gpt-4o-mini"
JOB = "ft-AF1WoRqd3aJAHsqc9NY7iL8F"
MODEL = "ft:gpt-4o-mini:acemeco:suffix:abc123"
SHARED_CHECKPOINT = "ft:gpt-4o-mini-2024-07-18:org:weather:B7R9VjQd"
PERMISSION = "cp_zc4Q7MP6XxulcVzj4MZdwsAB"
UPLOAD, PART = "upload_abc123", "string"
OTHER_PROJECT = "string"
ASKED_PROJECT = "project_id"
AFTER = "after"  # where lists are asked to go on


async def seed(resources: Resources, test: str) -> None:
    """Everything anew, in the state that the named test begins with."""
    principal = await _empty(resources)
    await factories.base_model(resources, BASE_MODEL)
    for file_id in ("file-abc123", "file_id"):
        await factories.file(resources, principal, file_id=file_id)
    if "test_files" in test and "list_with_all_params" in test:  # a purpose that no other list may hold
        await factories.file(resources, principal, file_id=AFTER, purpose="purpose")
    job = await factories.job(
        resources,
        principal,
        id=JOB,
        status=_status(test),
        model=BASE_MODEL,
        base_model_id=BASE_MODEL,
        training_file_id="file-abc123",
        current_step=1,
        total_steps=30,
        spec={"lora": factories.LORA},
    )
    await factories.add_events(resources, job.id, 4)
    # Some tests of permissions name a job's id where the name of a checkpoint belongs.
    for step, name in enumerate((SHARED_CHECKPOINT, JOB), 1):
        await factories.checkpoint(resources, job, step=step, model_name=name)
    await factories.job(
        resources, principal, id=AFTER, model=BASE_MODEL, base_model_id=BASE_MODEL, job_metadata={"foo": "string"}
    )
    async with resources.write() as session:
        (await session.scalars(of_job(Event, JOB).where(Event.sequence == 2))).one().id = AFTER
        last = (await session.scalars(of_job(Checkpoint, JOB).where(Checkpoint.step == 2))).one()
        last.id = AFTER
    await _model(resources, principal)
    await _later_tables(resources, principal)


def _status(test: str) -> JobStatus:
    return JobStatus.PAUSED if "resume" in test else JobStatus.QUEUED


async def _empty(resources: Resources) -> Principal:
    now = utc_now()
    async with resources.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            if table is not AuditEntry.__table__:  # which lets nothing be taken away
                await session.execute(delete(table))
        session.add(Organization(id="org-1", name="tests", created_at=now))
        await session.flush()
        for number, name in enumerate(("proj-1", OTHER_PROJECT, ASKED_PROJECT)):  # the first is the default project
            at = now + timedelta(seconds=number)
            session.add(Project(id=name, organization_id="org-1", name=name, created_at=at))
        await session.flush()
        key = {"name": "tests", "key_hash": hash_key(KEY), "hint": "My...Key", "created_at": now}
        session.add(ApiKey(id="key-1", project_id="proj-1", **key))
    return Principal("key-1", "proj-1", "org-1")


async def _model(resources: Resources, principal: Principal) -> None:
    adapter = await factories.stored(resources, "imported/adapter", b"an adapter")
    async with resources.write() as session:
        session.add(
            FineTunedModel(
                id=MODEL,
                project_id=principal.project_id,
                job_id=None,
                base_model_id=BASE_MODEL,
                lora=factories.LORA,
                adapter_key=adapter.key,
                adapter_sha256=adapter.sha256,
                adapter_bytes=adapter.bytes,
                created_at=utc_now(),
            )
        )


async def _later_tables(resources: Resources, principal: Principal) -> None:
    """Of parts of the contract whose tables are younger than this file."""
    now = utc_now()
    content = b"Example data"
    part = await factories.stored(resources, f"uploads/{UPLOAD}/{PART}", content)
    of_upload = {"project_id": principal.project_id, "created_at": now}
    upload: dict[str, Any] = {
        "id": UPLOAD,
        "filename": "filename",
        "purpose": "assistants",
        "bytes": len(content),
        "status": "pending",
        "num_parts": 1,
        "received_bytes": len(content),
        "expires_at": now + timedelta(hours=1),
        **of_upload,
    }
    held = {"bytes": part.bytes, "sha256": part.sha256, "storage_key": part.key}
    permission = {"created_at": now, "project_id": principal.project_id}
    shared: list[dict[str, Any]] = [
        {"id": PERMISSION, "model_name": SHARED_CHECKPOINT, "shared_with_id": OTHER_PROJECT, **permission},
        {"id": AFTER, "model_name": JOB, "shared_with_id": ASKED_PROJECT, **permission},
    ]
    rows = {
        "uploads": [upload],
        "upload_parts": [{"id": PART, "upload_id": UPLOAD, **held, **of_upload}],
        "checkpoint_permissions": shared,
    }
    async with resources.write() as session:
        for name, values in rows.items():
            if (table := Base.metadata.tables.get(name)) is not None:
                await session.execute(insert(table), values)
