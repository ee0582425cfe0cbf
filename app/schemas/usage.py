"""Usage and costs on the wire: pages of buckets, one for each day, as OpenAI's are."""

from typing import Generic, Literal, TypeVar

from pydantic import Field

from app.schemas import admin_examples
from app.schemas.common import Wire

Result = TypeVar("Result", bound=Wire)


class JobsEnded(Wire):
    succeeded: int
    failed: int
    cancelled: int


class FineTuningUsage(Wire):
    object: Literal["organization.usage.fine_tuning.result"] = "organization.usage.fine_tuning.result"
    project_id: str | None = Field(description="With `group_by=project_id`.")
    model: str | None = Field(description="The base model, with `group_by=model`; null for stored bytes.")
    gpu_seconds: float = Field(description="Time that jobs held slots, times the GPUs of these.")
    cpu_seconds: float = Field(description="Time that jobs held slots without a GPU.")
    trained_tokens: int
    stored_bytes: int = Field(description="What was stored when it was counted, once that day.")
    jobs: JobsEnded = Field(description="Jobs by how they ended, on the day on which they did.")


class Amount(Wire):
    value: float
    currency: str


class CostsResult(Wire):
    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: Amount | None = Field(description="Null where the server has no price list (`HONE_PRICES`).")
    line_item: str | None = Field(description="With `group_by=line_item`: a base model and a measure, or a measure.")
    project_id: str | None = Field(description="With `group_by=project_id`.")
    quantity: float | None = Field(description="With `group_by=line_item`.")
    quantity_unit: str | None
    api_key_id: None = None
    user_id: None = None


class Bucket(Wire, Generic[Result]):
    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[Result]


class UsagePage(Wire, Generic[Result]):
    object: Literal["page"] = "page"
    data: list[Bucket[Result]]
    has_more: bool
    next_page: str | None


class FineTuningUsagePage(UsagePage[FineTuningUsage]):
    model_config = admin_examples.USAGE


class CostsPage(UsagePage[CostsResult]):
    model_config = admin_examples.COSTS
