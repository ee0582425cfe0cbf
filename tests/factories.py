"""Rows as the API and the workers leave them, written through Resources: for states that only a worker produces."""

import json
import secrets
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import select

from app.auth import Principal, Role, hash_key, new_key
from app.db.models import BaseModel, Checkpoint, File, FineTunedModel, Job, JobStatus, LogSegment, WorkerState
from app.db.queries import server_rows
from app.db.usage_models import Measure, UsageRecord
from app.db.webhook_models import WebhookEndpoint
from app.ids import new_id, utc_now
from app.resources import Resources
from app.services import admin_keys, events, keys, webhook_signing
from app.services.workers import Description
from app.storage import keys as storage_keys
from app.storage.base import StoredObject

BASE_MODEL = "hone-tiny"
BASE_MODEL_WITH_SLASH = "acme/Tiny-1B"
# The adapter settings of every job that has made something.
LORA = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": "all-linear", "rslora": False, "dora": False}


def jsonl(rows: int = 12) -> bytes:
    """Valid training rows."""
    lines = [
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(rows)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


async def project(resources: Resources, *, beside: Principal | None = None) -> tuple[Principal, str]:
    """A project of its own, with its key; of an organization of its own or of that of the project `beside`."""
    key = new_key()
    async with resources.write() as session:
        organization_id = beside.organization_id if beside else None
        made = await keys.create_project(session, name="test", organization_id=organization_id)
        row = keys.create(session, project_id=made.id, name="test", key=key)
    return Principal(row.id, made.id, made.organization_id), key


async def key(
    resources: Resources, principal: Principal, *, role: Role = Role.OWNER, scopes: list[str] | None = None
) -> str:
    """Another key of the principal's project."""
    made = new_key()
    async with resources.write() as session:
        keys.create(session, project_id=principal.project_id, name=f"test {role}", key=made, role=role, scopes=scopes)
    return made


async def admin_key(resources: Resources, principal: Principal) -> str:
    """A key that administers the principal's organization."""
    async with resources.write() as session:
        return (await admin_keys.issue(session, principal, name="test"))[1]


async def base_model(resources: Resources, model_id: str = BASE_MODEL) -> str:
    async with resources.write() as session:
        if await session.scalar(server_rows(BaseModel).where(BaseModel.id == model_id)) is None:
            session.add(
                BaseModel(
                    id=model_id,
                    source="/nowhere",
                    revision="0" * 40,
                    num_parameters=1_000_000,
                    context_tokens=512,
                    created_at=utc_now(),
                )
            )
    return model_id


async def stored(resources: Resources, key: str, content: bytes) -> StoredObject:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "object"
        path.write_bytes(content)
        return await resources.storage.put_file(key, path)


async def objects(resources: Resources) -> set[str]:
    """The keys of everything in storage."""
    return {info.key async for page in resources.storage.list_objects("") for info in page}


async def file(
    resources: Resources,
    principal: Principal,
    *,
    content: bytes | None = None,
    purpose: str = "fine-tune",
    filename: str = "train.jsonl",
    storage_key: str | None = None,
    file_id: str | None = None,
) -> File:
    file_id = file_id or new_id("file-")
    key = storage_key or storage_keys.uploaded_file(principal.project_id, file_id)
    held = await stored(resources, key, jsonl() if content is None else content)
    row = File(
        id=file_id,
        project_id=principal.project_id,
        filename=filename,
        purpose=purpose,
        status="processed",
        bytes=held.bytes,
        sha256=held.sha256,
        storage_key=key,
        created_at=utc_now(),
        expires_at=None,
    )
    async with resources.write() as session:
        session.add(row)
    return row


async def job(resources: Resources, principal: Principal, **columns: Any) -> Job:
    await base_model(resources)
    values: dict[str, Any] = {
        "id": new_id("ftjob-"),
        "project_id": principal.project_id,
        "organization_id": principal.organization_id,
        "status": JobStatus.QUEUED,
        "model": BASE_MODEL,
        "base_model_id": BASE_MODEL,
        "training_file_id": new_id("file-"),
        "seed": 7,
        "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8},
        "current_step": 0,
        "result_file_ids": [],
        "created_at": utc_now(),
        "fence": 0,
        "crashes": 0,
        "event_sequence": 0,
        **columns,
    }
    row = Job(**values)
    async with resources.write() as session:
        session.add(row)
    return row


async def add_events(resources: Resources, job_id: str, count: int) -> None:
    async with resources.write() as session:
        row = (await session.scalars(select(Job).where(Job.id == job_id))).one()
        for step in range(1, count + 1):
            data = {"step": step, "total_steps": count, "train_loss": 0.5, "train_mean_token_accuracy": 0.9}
            message = f"Step {step}/{count}: training loss=0.50"
            events.add(session, row, message, now=utc_now(), type="metrics", data=data)


async def checkpoint(
    resources: Resources, of: Job, *, step: int, adapter_key: str | None = None, model_name: str | None = None
) -> Checkpoint:
    key = adapter_key or storage_keys.job_object(of.project_id, of.id, of.fence, f"adapter-{step}")
    adapter = await stored(resources, key, f"adapter at step {step}".encode())
    state = await stored(resources, storage_keys.job_object(of.project_id, of.id, of.fence, f"state-{step}"), b"state")
    row = Checkpoint(
        id=new_id("ftckpt_"),
        project_id=of.project_id,
        job_id=of.id,
        step=step,
        model_name=model_name or f"ft:{BASE_MODEL}:test::{secrets.token_hex(4)}:ckpt-step-{step}",
        metrics={"step": step, "train_loss": 0.25, "train_mean_token_accuracy": 0.75},
        adapter_key=adapter.key,
        adapter_sha256=adapter.sha256,
        adapter_bytes=adapter.bytes,
        state_key=state.key,
        state_sha256=state.sha256,
        state_bytes=state.bytes,
        created_at=utc_now() + timedelta(microseconds=step),
    )
    async with resources.write() as session:
        session.add(row)
    return row


async def log_segment(resources: Resources, of: Job, *, number: int, text: bytes, fence: int = 1) -> None:
    held = await stored(resources, storage_keys.job_object(of.project_id, of.id, fence, f"log/{number}"), text)
    row = LogSegment(
        project_id=of.project_id,
        job_id=of.id,
        fence=fence,
        number=number,
        storage_key=held.key,
        bytes=held.bytes,
    )
    async with resources.write() as session:
        session.add(row)


async def succeeded_job(resources: Resources, principal: Principal) -> tuple[Job, FineTunedModel]:
    """A finished job with a model and its result files, of which the second shares its object with the model."""
    await base_model(resources)
    job_id = new_id("ftjob-")
    archive = storage_keys.job_object(principal.project_id, job_id, 1, "adapter")
    metrics = await file(
        resources,
        principal,
        content=b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,0.5,0.9,,\n",
        purpose="fine-tune-results",
        filename="step_metrics.csv",
        storage_key=storage_keys.job_object(principal.project_id, job_id, 1, "metrics"),
    )
    adapter = await file(
        resources,
        principal,
        content=b"the adapter" * 1000,
        purpose="fine-tune-results",
        filename="adapter.zip",
        storage_key=archive,
    )
    model_id = f"ft:{BASE_MODEL}:test:my-suffix:{secrets.token_hex(4)}"
    now = utc_now()
    row = await job(
        resources,
        principal,
        id=job_id,
        status=JobStatus.SUCCEEDED,
        fine_tuned_model=model_id,
        result_file_ids=[metrics.id, adapter.id],
        trained_tokens=1234,
        current_step=36,
        total_steps=36,
        started_at=now,
        finished_at=now,
        spec={"version": 1, "n_epochs": 3, "lora": LORA},
        dataset={"training": {"examples": 12}},
        suffix="my-suffix",
        fence=1,
    )
    model = FineTunedModel(
        id=model_id,
        project_id=principal.project_id,
        job_id=job_id,
        base_model_id=BASE_MODEL,
        adapter_key=archive,
        adapter_sha256=adapter.sha256,
        adapter_bytes=adapter.bytes,
        created_at=now,
    )
    async with resources.write() as session:
        session.add(model)
    return row, model


async def webhook_endpoint(resources: Resources, principal: Principal, url: str, **columns: Any) -> WebhookEndpoint:
    """One that is told of every end of a job."""
    now = utc_now()
    secret = webhook_signing.new_secret()
    values: dict[str, Any] = {
        "id": new_id("we_"),
        "project_id": principal.project_id,
        "name": "test",
        "url": url,
        "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"],
        "secret": resources.sealer.seal(secret),
        "secret_hint": webhook_signing.hint(secret),
        "old_secrets": [],
        "created_at": now - timedelta(seconds=1),  # the database's clock may be coarser
        "updated_at": now,
        **columns,
    }
    row = WebhookEndpoint(**values)
    async with resources.write() as session:
        session.add(row)
    return row


async def revoke(resources: Resources, key: str) -> None:
    async with resources.write() as session:
        row = (await session.scalars(select(keys.ApiKey).where(keys.ApiKey.key_hash == hash_key(key)))).one()
        row.revoked_at = utc_now()


def description(worker_id: str, **values: Any) -> Description:
    """A worker with one busy slot, as it describes itself."""
    slot = {"number": 0, "device": "cpu", "state": "busy", "base_model": BASE_MODEL, "quantization": None}
    usual: dict[str, Any] = {
        "hostname": "host-a",
        "pid": 1,
        "version": "0",
        "pool": "default",
        "kinds": ["train", "cpu"],
        "state": WorkerState.READY,
        "slots": [slot],
        "unavailable_bases": {},
    }
    return Description(id=worker_id, **(usual | values))


async def used(
    resources: Resources,
    principal: Principal,
    day: datetime,
    measure: Measure,
    amount: int,
    *,
    model: str | None = BASE_MODEL,
) -> None:
    """A record of the ledger, as the end of a lease leaves it."""
    async with resources.write() as session:
        session.add(
            UsageRecord(
                id=new_id("usage_"),
                project_id=principal.project_id,
                organization_id=principal.organization_id,
                day=day,
                model=model,
                measure=measure,
                amount=amount,
            )
        )
