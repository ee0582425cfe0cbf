"""Every setting of Hone, read from the environment (prefix HONE_). Each default runs on a laptop."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.contract.extension import DEFAULT_POOL, POOL_NAME


class Settings(BaseSettings):
    """Documented in docs/settings.md, which is generated from the descriptions below."""

    model_config = SettingsConfigDict(env_prefix="HONE_", env_ignore_empty=True, extra="ignore")

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
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL. Default: a SQLite file in the data directory."
    )
    max_file_bytes: int = Field(default=512 * 1024**2, ge=1, description="Largest file that can be uploaded.")
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
    max_log_bytes: int = Field(default=16 * 1024**2, ge=1024, description="Most log text kept for one job.")
    tiny_model: bool = Field(
        default=True, description="Build and register the tiny base model hone-tiny at the first start."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="How much is logged.")

    @property
    def data(self) -> Path:
        return self.data_directory.expanduser().absolute()

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite+aiosqlite:///{self.data / 'hone.db'}"

    @property
    def is_sqlite(self) -> bool:
        return self.resolved_database_url.startswith("sqlite")
