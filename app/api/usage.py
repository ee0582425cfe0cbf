"""/v1/organization/usage/fine_tuning and /v1/organization/costs: what was used, and what that costs, by day."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession

from app.api import access
from app.api.access import needs
from app.api.deps import PLAIN_INTEGER, Caller, Opened, ReadSession
from app.api.times import MAX_UNIX, UNIX_TIME, unix
from app.auth import Principal
from app.db.usage_models import Measure
from app.errors import InvalidRequest
from app.ids import utc_now
from app.schemas.usage import (
    Amount,
    Bucket,
    CostsPage,
    CostsResult,
    FineTuningUsage,
    FineTuningUsagePage,
    JobsEnded,
    Result,
)
from app.services import costs, oversight, usage
from app.services.metering import DAY, day_of
from app.services.usage import Line
from worker.contract.text import Text

router = APIRouter(
    prefix="/v1/organization", tags=["Usage"], dependencies=needs("admin", admin_keys=True), responses=access.RESPONSES
)

_PAGE = re.compile(r"page_([0-9]{1,11})")
Ids = Annotated[list[Annotated[Text, Field(max_length=256)]], Field(max_length=100)]


@dataclass(frozen=True)
class _Asked:
    """`days` are the first moments of the buckets; `next_page` names the one that follows, if any does."""

    days: Sequence[datetime]
    next_page: str | None
    project_ids: Sequence[str]


def _asked(
    start_time: Annotated[int, Query(ge=0, le=MAX_UNIX, description="The first day holds it."), UNIX_TIME],
    end_time: Annotated[
        int | None, Query(ge=0, le=MAX_UNIX, description="The last day begins before it. Default: now."), UNIX_TIME
    ] = None,
    _bucket_width: Annotated[
        Literal["1d"], Query(alias="bucket_width", description="Buckets are days, of UTC.")
    ] = "1d",
    limit: Annotated[int, Query(ge=1, le=180, description="Most buckets in a page."), PLAIN_INTEGER] = 7,
    page: Annotated[str | None, Query(description="`next_page` of the page before.")] = None,
    project_ids: Annotated[Ids, Query(alias="project_ids[]", description="Only of these projects.")] = [],  # noqa: B006
) -> _Asked:
    first = start_time
    if page is not None:
        match = _PAGE.fullmatch(page)
        if match is None or not start_time <= int(match[1]) <= MAX_UNIX:
            raise InvalidRequest("There is no such page.", param="page")
        first = int(match[1])
    day = day_of(datetime.fromtimestamp(first, UTC))
    now = utc_now()
    end = min(now, datetime.fromtimestamp(end_time, UTC)) if end_time is not None else now
    days: list[datetime] = []
    while day < end and len(days) < limit:
        days.append(day)
        day += DAY
    return _Asked(days, f"page_{unix(day)}" if day < end else None, project_ids)


Asked = Annotated[_Asked, Depends(_asked)]


@router.get("/usage/fine_tuning")
async def list_fine_tuning_usage(
    asked: Asked,
    principal: Caller,
    session: ReadSession,
    models: Annotated[Ids, Query(alias="models[]", description="Only of these base models.")] = [],  # noqa: B006
    group_by: Annotated[list[Literal["project_id", "model"]], Query(alias="group_by[]")] = [],  # noqa: B006
) -> FineTuningUsagePage:
    """GPU seconds, trained tokens, stored bytes and ended jobs, by day. An extension of Hone's, in OpenAI's form."""
    found = await _lines(session, principal, asked)
    if models:
        found = [line for line in found if line.model in models]

    def group(line: Line) -> tuple[str, str]:
        return (
            line.project_id if "project_id" in group_by else "",
            (line.model or "") if "model" in group_by else "",
        )

    def results(lines: Iterable[Line]) -> list[FineTuningUsage]:
        return [_usage(*place, list(of)) for place, of in groupby(sorted(lines, key=group), key=group)]

    return FineTuningUsagePage(
        data=_buckets(asked, found, results), has_more=asked.next_page is not None, next_page=asked.next_page
    )


@router.get("/costs")
async def list_costs(
    asked: Asked,
    principal: Caller,
    session: ReadSession,
    resources: Opened,
    line_items: Annotated[Ids, Query(alias="line_items[]", description="Only of these line items.")] = [],  # noqa: B006
    group_by: Annotated[list[Literal["project_id", "line_item"]], Query(alias="group_by[]")] = [],  # noqa: B006
) -> CostsPage:
    """What was used, by the server's price list (`HONE_PRICES`)."""
    prices = resources.settings.prices
    found = await _lines(session, principal, asked)

    def group(cost: costs.Cost) -> tuple[str, str]:
        return (
            cost.project_id if "project_id" in group_by else "",
            cost.line_item if "line_item" in group_by else "",
        )

    def results(lines: Iterable[Line]) -> list[CostsResult]:
        of_day = [cost for cost in costs.of(list(lines), prices) if not line_items or cost.line_item in line_items]
        return [
            _cost(*place, list(of), prices.currency if prices else None)
            for place, of in groupby(sorted(of_day, key=group), key=group)
        ]

    return CostsPage(
        data=_buckets(asked, found, results), has_more=asked.next_page is not None, next_page=asked.next_page
    )


async def _lines(session: AsyncSession, principal: Principal, asked: _Asked) -> list[Line]:
    if not asked.days:
        return []
    view = await oversight.view_of(session, principal)
    start, end = asked.days[0], asked.days[-1] + DAY
    return await usage.lines(session, view, start=start, end=end, project_ids=asked.project_ids)


def _buckets(
    asked: _Asked, found: Iterable[Line], results: Callable[[Iterable[Line]], list[Result]]
) -> list[Bucket[Result]]:
    """One for each day that was asked for; days on which nothing was used have no results."""
    by_day = {day: list(lines) for day, lines in groupby(found, key=lambda line: line.day)}
    return [
        Bucket(start_time=unix(day), end_time=unix(day + DAY), results=results(by_day.get(day, [])))
        for day in asked.days
    ]


def _usage(project_id: str, model: str, found: Sequence[Line]) -> FineTuningUsage:
    return FineTuningUsage(
        project_id=project_id or None,
        model=model or None,
        gpu_seconds=usage.total(found, Measure.GPU_MILLISECONDS) / 1000,
        cpu_seconds=usage.total(found, Measure.CPU_MILLISECONDS) / 1000,
        trained_tokens=usage.total(found, Measure.TRAINED_TOKENS),
        stored_bytes=usage.total(found, Measure.STORED_BYTES),
        jobs=JobsEnded(
            succeeded=usage.total(found, Measure.JOBS_SUCCEEDED),
            failed=usage.total(found, Measure.JOBS_FAILED),
            cancelled=usage.total(found, Measure.JOBS_CANCELLED),
        ),
    )


def _cost(project_id: str, line_item: str, found: Sequence[costs.Cost], currency: str | None) -> CostsResult:
    amount = None
    if currency is not None:
        amount = Amount(value=float(sum((cost.amount or Decimal(0) for cost in found), Decimal(0))), currency=currency)
    return CostsResult(
        amount=amount,
        project_id=project_id or None,
        line_item=line_item or None,
        quantity=float(sum((cost.quantity for cost in found), Decimal(0))) if line_item else None,
        quantity_unit=found[0].unit if line_item else None,
    )
