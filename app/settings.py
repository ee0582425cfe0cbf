"""Every setting of Hone, read from the environment (prefix HONE_). Each default runs on a laptop."""

import json
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.prices import Prices
from worker.contract.extension import DEFAULT_POOL, POOL_NAME

# The ways to write a database's scheme, and the one that the rest of Hone reads.
_DATABASES = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "postgresql+asyncpg": "postgresql",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
}
# Such addresses are shown: in answers, logs and by `hone doctor`.
_SHOWN_URL = r"^https?://[^/@]+(/|$)"

# Scheme, host and port: browsers send no more, and compare it letter by letter. "*" and "null" are none.
Origin = Annotated[str, Field(pattern=r"^https?://[a-z0-9.\-]+(:[0-9]{1,5})?$")]


class Settings(BaseSettings):
    """Documented in docs/settings.md, which is generated from the descriptions below."""

    model_config = SettingsConfigDict(
        env_prefix="HONE_", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    data_directory: Path = Field(
        default=Path("~/.hone"), description="Where the database, files, adapters and caches of this machine lie."
    )
    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port the API listens on; 0 takes a free one.")
    api_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="The default project's API key. Without it, one is made at the first start and printed once.",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="`postgresql://user:password@host/database`, with libpq's parameters such as `?sslmode=require`. "
        "Default: a SQLite file in the data directory.",
    )
    database_timeout_seconds: float = Field(
        default=3.0,
        ge=0.1,
        description="Longest time for one transaction, the wait for a connection included. Beyond it the API "
        "answers 503, and a worker tries again.",
    )
    database_connections: int = Field(
        default=20, ge=2, description="Most connections to PostgreSQL that one process holds."
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis that carries wakes between processes: redis://[user:password@]host[:port][/database], "
        "rediss:// for TLS, or unix:///path. Default: processes find each other's work by looking once a second.",
    )
    s3_bucket: str | None = Field(
        default=None, description="The bucket for files, checkpoints and adapters. Default: a local directory."
    )
    s3_endpoint_url: str | None = Field(
        default=None, pattern=_SHOWN_URL, description="Where S3 is, if it is not Amazon's; addressed by path."
    )
    s3_region: str | None = Field(default=None, description="Region of the bucket. Default: boto3's own, or us-east-1.")
    s3_access_key_id: str | None = Field(
        default=None, description="Access key for S3. Without it, boto3 looks for credentials in its usual places."
    )
    s3_secret_access_key: SecretStr | None = Field(default=None, description="The secret that goes with it.")
    s3_prefix: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_\-./]*$",
        description="Keys begin with this, so that others may use the bucket too.",
    )
    s3_public_url: str | None = Field(
        default=None,
        pattern=_SHOWN_URL,
        description="Where clients reach the same S3. If set, downloads are redirected there.",
    )
    s3_timeout_seconds: float = Field(
        default=20.0, ge=0.1, description="S3 is given up when it does not answer, or not move a mebibyte, for as long."
    )
    orphan_seconds: float = Field(
        default=86400.0, ge=21600, description="What lies in storage for longer and belongs to nothing is removed."
    )
    base_cache_bytes: int = Field(
        default=200 * 1024**3,
        ge=1,
        description="Most disk that base models may take on one machine; those used longest ago go first. What only "
        "links to local storage or to the Hugging Face cache does not count.",
    )
    max_file_bytes: int = Field(default=512 * 1024**2, ge=1, description="Largest file that can be uploaded at once.")
    max_upload_bytes: int = Field(default=8 * 1024**3, ge=1, description="Largest file that can be uploaded in parts.")
    result_files_base64: bool = Field(
        default=False,
        description="Workers write `step_metrics.csv` as base64 text, which programs written for OpenAI may decode; "
        "files of jobs that have ended stay as they are.",
    )
    connections: int = Field(
        default=4096, ge=1, description="Most connections that one server process has open; more are answered with 503."
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Most requests of one project in a minute, all its keys together; more are answered with 429 and "
        "when to come again. Counted in Redis if there is one, else by each server process for itself. This and the "
        "next eight hold for projects for which nothing else is set (`hone limits set`). Default: no limit.",
    )
    limit_upload_bytes: int | None = Field(
        default=None, ge=0, description="Largest file that a project may upload, below the two limits above."
    )
    limit_upload_bytes_per_day: int | None = Field(
        default=None, ge=0, description="Most bytes that a project may upload in a day (UTC), deleted ones included."
    )
    limit_stored_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Most bytes that a project may have in files, uploads under way, checkpoints and adapters.",
    )
    limit_files: int | None = Field(
        default=None, ge=0, description="Most files that a project may have; uploads under way count, results too."
    )
    limit_queued_jobs: int | None = Field(
        default=None, ge=0, description="Most jobs of a project that may wait; more are refused with 429."
    )
    limit_running_jobs: int | None = Field(
        default=None, ge=0, description="Most jobs of a project that run at a time; more wait in the queue."
    )
    limit_gpu_seconds_per_month: int | None = Field(
        default=None,
        ge=0,
        description="GPU seconds that a project's jobs may use in a month (UTC), as the usage API counts them. Beyond "
        "it jobs are refused, and those that wait go on waiting.",
    )
    limit_trained_tokens_per_job: int | None = Field(
        default=None,
        ge=0,
        description="Most tokens, times epochs, that one job may train on; it fails before its training otherwise.",
    )
    streams_per_key: int = Field(
        default=100,
        ge=1,
        description="Most events and logs that one API key may follow at the same time, counted by each server process "
        "for itself; one more is answered with 429.",
    )
    max_line_bytes: int = Field(default=8 * 1024**2, ge=1024, description="Longest line of a training file.")
    max_rows: int = Field(default=1_000_000, ge=10, description="Most rows of a training file.")
    max_sequence_tokens: int = Field(
        default=4096,
        ge=16,
        description="Longer examples are cut at the end; the base model's context may cap it lower.",
    )
    slots: int | None = Field(
        default=None, ge=1, le=64, description="Jobs this worker trains at a time. Default: one per GPU, or one."
    )
    pool: str = Field(
        default=DEFAULT_POOL,
        pattern=POOL_NAME,
        description="Name of the group this worker belongs to: it trains the jobs that name it (`hone.pool`).",
    )
    cpu_only: bool = Field(
        default=False, description="A worker that checks files and sweeps, but trains nothing and needs no PyTorch."
    )
    trainer_threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of each trainer. Default: the machine's cores, shared by the slots.",
    )
    trainer_memory_bytes: int | None = Field(
        default=None,
        ge=1024**3,
        description="Most main memory that a trainer may fill (RLIMIT_DATA; a GPU's own memory does not count). A run "
        "that needs more ends with an error. Default: no limit of Hone's own.",
    )
    lease_seconds: float = Field(
        default=30.0, ge=1, description="A worker that is silent for this long loses its jobs to another."
    )
    progress_timeout_seconds: float = Field(
        default=300.0, ge=1, description="A trainer that shows no progress for this long is ended, its job resumed."
    )
    validation_timeout_seconds: float = Field(default=600.0, ge=1, description="Longest time to check one job's files.")
    validation_memory_bytes: int = Field(
        default=4 * 1024**3, ge=256 * 1024**2, description="Most memory the process that checks files may use."
    )
    stop_grace_seconds: float = Field(
        default=5.0, ge=0.1, description="A trainer told to stop that has not after this long is killed."
    )
    drain_seconds: float = Field(
        default=60.0, ge=0.1, description="On Ctrl-C or SIGTERM, how long running jobs get to write a checkpoint."
    )
    trainer_idle_seconds: float = Field(
        default=900.0, ge=0, description="A trainer without work keeps its base model loaded for this long."
    )
    max_crashes: int = Field(
        default=3, ge=1, description="Crashes without a new checkpoint between them after which a job fails."
    )
    keep_checkpoint_epochs: int = Field(
        default=3,
        ge=1,
        le=50,
        description="Of a job's checkpoints, those of so many last epochs are kept, if the job says nothing else.",
    )
    paused_status: Literal["paused", "queued"] = Field(
        default="paused",
        description="What a paused job shows as its `status`. `queued` is for clients that check answers strictly, to "
        "whom OpenAI's schema does not know `paused`; `hone.status` tells it anyway.",
    )
    wandb_api_key: SecretStr | None = Field(
        default=None,
        description="Key for Weights & Biases. With it jobs may ask for the integration `wandb`; API and workers "
        "need it alike, as with the next five.",
    )
    wandb_base_url: str | None = Field(
        default=None, pattern=_SHOWN_URL, description="Where W&B is, if it is a server of one's own."
    )
    wandb_offline: bool = Field(
        default=False,
        description="W&B needs no key: runs are kept in `wandb` in the worker's data directory, for `wandb sync`.",
    )
    mlflow_tracking_uri: SecretStr | None = Field(
        default=None, description="The MLflow server that jobs may ask for: https://[user:password@]host."
    )
    tensorboard_directory: Path | None = Field(
        default=None, description="Where workers write TensorBoard's files, for the jobs that ask for them."
    )
    tracker_timeout_seconds: float = Field(
        default=60.0,
        ge=0.1,
        description="An integration that does not answer for this long is given up; the job goes on.",
    )
    max_log_bytes: int = Field(default=16 * 1024**2, ge=1024, description="Most log text kept for one job.")
    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Keys that secrets in the database, those of webhooks, are sealed with: the first seals, each "
        "opens, separated by commas; `hone secrets new-key` makes one. All processes need the same. Default: the file "
        "`secret.key` beside SQLite's; with PostgreSQL there are no webhooks without.",
    )
    outgoing_allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        default=(),
        description="Networks that URLs given by clients may lead to besides the public Internet, such as "
        "`10.1.0.0/16,fd00:1::/32` for receivers of webhooks in your own network. Only there is plain http spoken.",
    )
    webhook_timeout_seconds: float = Field(
        default=10.0, ge=0.1, description="A receiver of webhooks that has not answered by then is tried again."
    )
    webhook_retry_seconds: float = Field(
        default=5.0, gt=0, description="Wait before the second attempt to deliver; it doubles, up to six hours."
    )
    webhook_give_up_seconds: float = Field(
        default=259200.0, ge=0, description="Attempts to deliver end when an event is this old."
    )
    webhook_log_seconds: float = Field(
        default=2592000.0, ge=0, description="How long the deliveries that are over can be read."
    )
    python_graders: bool = Field(
        default=False,
        description="Run graders of type `python`, on workers that have the sandbox of the next setting.",
    )
    python_grader_sandbox: Literal["bubblewrap", "other_user"] = Field(
        default="bubblewrap",
        description="What keeps them apart. `other_user` does without bubblewrap, for a worker that is root: graders "
        "are another user in namespaces, and can read what every user of the machine can.",
    )
    python_grader_seconds: float = Field(default=120.0, ge=1, le=570, description="Longest time for one of them.")
    python_grader_memory_bytes: int = Field(
        default=1024**3, ge=128 * 1024**2, description="Most memory that one of them may use."
    )
    grader_base_url: str | None = Field(
        default=None,
        pattern=_SHOWN_URL,
        description="The OpenAI-compatible endpoint whose models graders of type `score_model` and `label_model` "
        "ask, such as `http://127.0.0.1:8001/v1`. Default: such graders are refused.",
    )
    grader_api_key: SecretStr | None = Field(default=None, description="The key that it is called with.")
    grader_timeout_seconds: float = Field(
        default=60.0, ge=0.1, le=570, description="A grader's model is given up when it has not answered after this."
    )
    prices: Annotated[Prices | None, NoDecode] = Field(
        default=None,
        description="The price list for `GET /v1/organization/costs`: JSON, or the path of a file with it, such as "
        '`{"currency": "eur", "gb_month": 0.02, "models": {"*": {"gpu_hour": 2.5, "million_trained_tokens": 1}}}`; '
        "see docs/usage-and-audit.md.",
    )
    audit_retention_days: int | None = Field(
        default=None,
        ge=1,
        description="Entries of the audit log that are older are removed, once a day. Default: they stay for ever.",
    )
    tiny_model: bool = Field(
        default=True, description="Build and register the tiny base model hone-tiny at the first start."
    )
    docs_page: bool = Field(
        default=True, description="Serve `/docs`, the page that describes the API, and `/openapi.json`, to anyone."
    )
    cors_allowed_origins: Annotated[tuple[Origin, ...], NoDecode] = Field(
        default=(),
        description="Pages that may call the API from browsers, such as `https://app.example.com`, separated by "
        "commas; each exactly as browsers send it. Default: none.",
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        default=(),
        description="Networks of reverse proxies, such as `127.0.0.1,10.1.0.0/16`: what they say in `X-Forwarded-For` "
        "is taken for the client's address. Default: nobody is believed.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="How much is logged.")

    @model_validator(mode="after")
    def _s3_is_whole(self) -> Self:
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError("HONE_S3_ACCESS_KEY_ID and HONE_S3_SECRET_ACCESS_KEY go together")
        given = self.model_fields_set & {name for name in type(self).model_fields if name.startswith("s3_")}
        if given and self.s3_bucket is None:
            raise ValueError(f"HONE_{min(given).upper()} is set, but HONE_S3_BUCKET is not")
        return self

    @field_validator(
        "outgoing_allowed_networks", "secret_keys", "cors_allowed_origins", "trusted_proxies", mode="before"
    )
    @classmethod
    def _in_a_row(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("prices", mode="before")
    @classmethod
    def _as_written_or_in_a_file(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        text = value
        if not value.lstrip().startswith("{"):
            try:
                text = Path(value).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"expected JSON, or the path of a file with it, and cannot read it: {error}") from None
        try:
            return json.loads(text, parse_float=Decimal)
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None

    @field_validator("database_url", mode="before")
    @classmethod
    def _with_its_driver(cls, url: object) -> object:
        if url is None:
            return None
        text = url.get_secret_value() if isinstance(url, SecretStr) else str(url)
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in _DATABASES:
            raise ValueError("expected a URL that begins with postgresql:// or sqlite+aiosqlite:///")
        return f"{_DATABASES[scheme]}://{rest}"

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        """Here and not where it is used, because those who parse URLs show the wrong part, which may be a password."""
        if value is not None and not _is_redis_url(value.get_secret_value()):
            raise ValueError(
                "expected redis://[user:password@]host[:port][/database], rediss://... or unix:///path; "
                "special characters of a password are percent-encoded"
            )
        return value

    @property
    def data(self) -> Path:
        return self.data_directory.expanduser().absolute()

    @property
    def secrets(self) -> frozenset[str]:
        """All that is secret in these settings, passwords within URLs by themselves too: what no log may hold."""
        found: set[str] = set()
        for name in type(self).model_fields:
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, SecretStr):
                    found |= _secrets_in(one.get_secret_value())
        return frozenset(found)

    @property
    def key_file(self) -> Path | None:
        """Where the key to seal secrets with lies, besides those of `secret_keys`: beside the file of SQLite."""
        scheme, _, path = self.resolved_database_url.partition(":///")
        return Path(path.partition("?")[0]).with_name("secret.key") if scheme.startswith("sqlite") else None

    @property
    def trackers(self) -> frozenset[str]:
        """The kinds of integrations that jobs may ask for."""
        has = {
            "wandb": self.wandb_offline or self.wandb_api_key is not None,
            "mlflow": self.mlflow_tracking_uri is not None,
            "tensorboard": self.tensorboard_directory is not None,
        }
        return frozenset(kind for kind, is_there in has.items() if is_there)

    @property
    def resolved_database_url(self) -> str:
        """Of SQLite as SQLAlchemy writes it, of PostgreSQL as libpq and asyncpg do. Holds a secret."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite+aiosqlite:///{self.data / 'hone.db'}"


def _secrets_in(text: str) -> set[str]:
    """Of a URL its password, as it is and as it is written there: the rest may be shown."""
    if "://" not in text:
        return {text}
    try:
        password = urlsplit(text).password
    except ValueError:
        return {text}
    return {password, unquote(password)} if password else set()


def _is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  reading it checks it
    except ValueError:
        return False
    if parts.scheme == "unix":
        return len(parts.path) > 1
    database = parts.path.strip("/")
    return parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and (not database or database.isdecimal())
