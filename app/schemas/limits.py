"""What a project may use, as the operator sees and sets it."""

from typing import Annotated, Literal

from pydantic import Field

from app.schemas import admin_examples
from app.schemas.common import Wire

_Most = Annotated[int, Field(strict=True, ge=0, le=2**53 - 1)]
_AtLeastOne = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class LimitsChange(Wire):
    """What is left out stays as it is; null takes the server's default back."""

    model_config = admin_examples.LIMITS_CHANGE

    requests_per_minute: _AtLeastOne | None = None
    upload_bytes: _Most | None = None
    upload_bytes_per_day: _Most | None = None
    stored_bytes: _Most | None = None
    files: _Most | None = None
    queued_jobs: _Most | None = None
    running_jobs: _Most | None = None
    gpu_seconds_per_month: _Most | None = None
    trained_tokens_per_job: _Most | None = None


class LimitRead(Wire):
    value: int | None = Field(description="What holds; null is no limit.")
    default: int | None = Field(description="The server's setting.")
    override: int | None = Field(description="What was set for this project.")
    used: int | None = Field(description="Null for limits of a single request, file or job.")
    left: int | None


class LimitsRead(Wire):
    model_config = admin_examples.LIMITS

    object: Literal["project.limits"] = "project.limits"
    project_id: str
    requests_per_minute: LimitRead
    upload_bytes: LimitRead
    upload_bytes_per_day: LimitRead
    stored_bytes: LimitRead
    files: LimitRead
    queued_jobs: LimitRead
    running_jobs: LimitRead
    gpu_seconds_per_month: LimitRead
    trained_tokens_per_job: LimitRead
