"""The tables. Tenant rows carry `project_id`; SERVER_TABLES belong to the installation."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.auth import Role
from app.db.audit_models import AuditEntry, AuditHorizon
from app.db.base import Base, JobRow, ProjectRow
from app.db.tenancy_models import AdminApiKey, User
from worker.contract.extension import DEFAULT_POOL


class JobStatus(StrEnum):
    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"


class Organization(Base):
    """Its name is a part of its models' names. While it is disabled, no key of it is good."""

    __tablename__ = "organizations"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class Project(Base):
    """Its organization archives it, for good; the operator may disable it for a while. No key of it is good then."""

    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    archived_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]


class ApiKey(Base):
    """A key of a project, of its own or of a user or a service account of the project.

    It may do what its role, its owner's role and its scopes allow, all three; without scopes, what the roles do.
    """

    __tablename__ = "api_keys"
    __table_args__ = (Index(None, "project_id", "created_at", "id"), Index(None, "user_id"))
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(64))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(32))
    role: Mapped[Role] = mapped_column(String(16), default=Role.OWNER)
    scopes: Mapped[list[str] | None]
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    service_account_id: Mapped[str | None] = mapped_column(ForeignKey("service_accounts.id"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class File(ProjectRow):
    """An uploaded file or a result. The object in storage is complete before the row exists.

    From `expires_at` on no client sees it; see `app.services.files` for when it goes.
    """

    __tablename__ = "files"
    __table_args__ = (
        Index(None, "project_id", "created_at", "id"),
        Index(None, "storage_key"),
        Index(None, "expires_at"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(256))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class Upload(ProjectRow):
    """A file that arrives in parts. Whoever changes `status`, or adds a part, holds the row.

    The two counters are of the parts that are held; those of an upload that has ended (`ended_at`) are swept.
    """

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "status", "expires_at"), Index(None, "ended_at"))
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int]
    status: Mapped[UploadStatus] = mapped_column(String(16), default=UploadStatus.PENDING)
    file_expires_after_seconds: Mapped[int | None]
    file_id: Mapped[str | None] = mapped_column(String(64))  # no foreign key: the file may be deleted
    num_parts: Mapped[int] = mapped_column(default=0)
    received_bytes: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class UploadPart(ProjectRow):
    __tablename__ = "upload_parts"
    __table_args__ = (Index(None, "upload_id"), Index(None, "storage_key"))
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(256))
    created_at: Mapped[datetime]


class BaseModel(Base):
    """A base model that jobs may name. `source` is a directory or a hub repository, never shown to clients.

    `linear_layers` holds (outputs, inputs) by module path, so that checks need no weights. It may be long, and is
    only read where it is asked for. None for bases that were registered before it was recorded.
    """

    __tablename__ = "base_models"
    id: Mapped[str] = mapped_column(String(256), primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    revision: Mapped[str] = mapped_column(String(64))
    num_parameters: Mapped[int]
    context_tokens: Mapped[int]
    linear_layers: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)
    created_at: Mapped[datetime]


class BaseModelFile(Base):
    """A file of a base model, by its plain name. Those of one from the hub are no objects, and have no key.

    The rows come before the objects and before the row of the base model: what they name is not swept, and an upload
    that was interrupted goes on where it was. No foreign key, therefore. `touched_at` tells those that nobody goes
    on with.
    """

    __tablename__ = "base_model_files"
    __table_args__ = (Index(None, "storage_key"), Index(None, "sha256"))
    base_model_id: Mapped[str] = mapped_column(String(256), primary_key=True)
    name: Mapped[str] = mapped_column(String(160), primary_key=True)
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str | None] = mapped_column(String(256))
    is_stored: Mapped[bool] = mapped_column(default=False)
    touched_at: Mapped[datetime]


class ModelAlias(Base):
    """Another name for a base model, so that clients need not learn its own."""

    __tablename__ = "model_aliases"
    id: Mapped[str] = mapped_column(String(256), primary_key=True)
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    created_at: Mapped[datetime]


class Job(ProjectRow):
    """A fine-tuning job. The lease columns say who works on it; only `app.services.leases` writes them.

    `fence` rises at every claim and cancellation: a write that names an old one changes nothing.
    `event_sequence` numbers the job's events without gaps.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "project_id", "created_at", "id"),
        Index(None, "status", "lease_owner", "pool"),  # what may be claimed
        Index(None, "claimed_from", "project_id"),  # how much each project has in hand
        Index(None, "lease_owner"),
        Index(None, "lease_expires_at"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    status: Mapped[JobStatus] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(256))
    requested_model: Mapped[str | None] = mapped_column(String(256))  # where it is another name of `model`
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    # No foreign keys: a job still names its files after they were deleted.
    training_file_id: Mapped[str] = mapped_column(String(64))
    validation_file_id: Mapped[str | None] = mapped_column(String(64))
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int]
    method: Mapped[str] = mapped_column(String(32), default="supervised")
    quantization: Mapped[str | None] = mapped_column(String(16))
    # What the claim goes by: see `app.services.leases`.
    priority: Mapped[int] = mapped_column(default=0)
    pool: Mapped[str] = mapped_column(String(64), default=DEFAULT_POOL)
    is_preemptible: Mapped[bool] = mapped_column(default=False)
    queued_at: Mapped[datetime | None]
    preempts_job_id: Mapped[str | None] = mapped_column(String(64))  # while it waits: the job that makes room for it
    # As asked for, "auto" included; replaced by the resolved numbers once the files are validated.
    hyperparameters: Mapped[dict[str, Any]]
    job_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    # What was sent as `hone`; and, for a job that continues one, where the adapter lies: model, key, sha256, lora.
    extension: Mapped[dict[str, Any] | None]
    initial_adapter: Mapped[dict[str, Any] | None]
    # As asked for; and what came of each tracker, by its name: run_id, url, error.
    integrations: Mapped[list[dict[str, Any]] | None]
    tracker_runs: Mapped[dict[str, Any] | None]
    # Filled by validation: the TrainSpec, the PrepareReport's counts, and where the token files lie.
    spec: Mapped[dict[str, Any] | None]
    dataset: Mapped[dict[str, Any] | None]
    current_step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    trained_tokens: Mapped[int | None]
    estimated_finish_at: Mapped[datetime | None]
    fine_tuned_model: Mapped[str | None] = mapped_column(String(256))
    result_file_ids: Mapped[list[str]] = mapped_column(default=list)
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    not_before_at: Mapped[datetime | None]
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_expires_at: Mapped[datetime | None]
    claimed_from: Mapped[JobStatus | None] = mapped_column(String(32))
    fence: Mapped[int] = mapped_column(default=0)
    # What the lease has used so far: see `app.services.metering`.
    meter_started_at: Mapped[datetime | None]
    meter_seen_at: Mapped[datetime | None]  # the last sign of life of the lease's holder
    meter_gpus: Mapped[int] = mapped_column(default=0)
    meter_tokens: Mapped[int] = mapped_column(default=0)
    crashes: Mapped[int] = mapped_column(default=0)
    # Whether a slot was blamed already for a run that failed before its first step.
    has_been_excused: Mapped[bool] = mapped_column(default=False)
    event_sequence: Mapped[int] = mapped_column(default=0)


class Event(JobRow):
    __tablename__ = "events"
    __table_args__ = (Index(None, "job_id", "sequence", unique=True),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    sequence: Mapped[int]
    created_at: Mapped[datetime]
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]


class StepMetric(JobRow):
    """One figure set of one step. The key makes the first write win when a resumed run repeats a step."""

    __tablename__ = "step_metrics"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)  # train, valid, full_valid
    created_at: Mapped[datetime]
    values: Mapped[dict[str, Any]]


class Checkpoint(JobRow):
    """A complete checkpoint in storage: the adapter, and the state that a resumed run needs beside it.

    States go once they are of no use (`app.services.retention`).
    """

    __tablename__ = "checkpoints"
    __table_args__ = (Index(None, "job_id", "step", unique=True), Index(None, "adapter_key"))
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[int]
    model_name: Mapped[str] = mapped_column(String(256))
    metrics: Mapped[dict[str, Any]]
    adapter_key: Mapped[str] = mapped_column(String(256))
    adapter_sha256: Mapped[str] = mapped_column(String(64))
    adapter_bytes: Mapped[int]
    state_key: Mapped[str | None] = mapped_column(String(256))
    state_sha256: Mapped[str | None] = mapped_column(String(64))
    state_bytes: Mapped[int | None]
    created_at: Mapped[datetime]


class FineTunedModel(ProjectRow):
    """Made by a job, or imported by the operator: then `lora` says how its adapter is shaped."""

    __tablename__ = "fine_tuned_models"
    __table_args__ = (Index(None, "project_id", "created_at", "id"), Index(None, "adapter_key"))
    id: Mapped[str] = mapped_column(String(256), primary_key=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    lora: Mapped[dict[str, Any] | None]
    adapter_key: Mapped[str] = mapped_column(String(256))
    adapter_sha256: Mapped[str] = mapped_column(String(64))
    adapter_bytes: Mapped[int]
    created_at: Mapped[datetime]


class CheckpointPermission(ProjectRow):
    """Another project may use a model or checkpoint of this one: read it, and continue from it."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        Index(None, "project_id", "model_name", "shared_with_id", unique=True),
        Index(None, "shared_with_id", "model_name"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_name: Mapped[str] = mapped_column(String(256))
    shared_with_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[datetime]


class LogSegment(JobRow):
    """A piece of a job's log in storage; read in the order of (fence, number)."""

    __tablename__ = "log_segments"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    storage_key: Mapped[str] = mapped_column(String(256))
    bytes: Mapped[int]


class Worker(Base):
    """A worker process, as it last described itself. What its slots work on is told by the jobs' leases.

    `slots` are objects with `number`, `device`, `state` (idle, busy, unhealthy), `base_model` and `quantization`
    (what is loaded); `unavailable_bases` maps ids of base models that this worker cannot get to the reason.
    """

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    hostname: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    version: Mapped[str] = mapped_column(String(32))
    pool: Mapped[str] = mapped_column(String(64))
    kinds: Mapped[list[str]]
    state: Mapped[WorkerState] = mapped_column(String(16))
    slots: Mapped[list[dict[str, Any]]]
    unavailable_bases: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    drain_requested_at: Mapped[datetime | None]


class GraderRun(ProjectRow):
    """A Python grader that a request waits for; a worker runs it under a lease, and only `app.services.grader_runs`
    writes here. The row is removed when it was answered, or when nobody waits any more.

    `request` holds source, sample and item; `result` is either a `reward` or a fault.
    """

    __tablename__ = "grader_runs"
    __table_args__ = (Index(None, "expires_at"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    attempts: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


SERVER_TABLES = (
    Organization,
    Project,
    ApiKey,
    User,
    AdminApiKey,
    BaseModel,
    BaseModelFile,
    ModelAlias,
    Worker,
    AuditEntry,
    AuditHorizon,
)
