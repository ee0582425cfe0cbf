"""Usage and costs: OpenAI's pages of buckets, each project's own, by the price list."""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI
from pydantic import ValidationError

from app.db.usage_models import Measure, UsageRecord
from app.ids import new_id, utc_now
from app.prices import Prices
from app.resources import Resources
from app.services import keys
from app.services.metering import DAY, day_of
from app.settings import Settings
from tests.backends import Backends
from tests.conftest import Served, Tenant, serve, tenant_of

PRICES = {
    "currency": "eur",
    "gb_month": 0.3,
    "models": {"*": {"gpu_hour": 3.6, "cpu_hour": 0.36}, "hone-tiny": {"gpu_hour": 7.2, "million_trained_tokens": 2}},
}
TODAY = day_of(utc_now())


@pytest.fixture(scope="module")
def priced(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = backends.new(tmp_path_factory.mktemp("priced") / "data")
    yield from serve(made.settings(prices=json.dumps(PRICES)))


@pytest.fixture
async def tenant(priced: Served) -> AsyncIterator[Tenant]:
    async with tenant_of(priced) as made:
        await used(made.resources, made, TODAY - DAY, Measure.GPU_MILLISECONDS, 1_800_000)
        await used(made.resources, made, TODAY - DAY, Measure.GPU_MILLISECONDS, 1_800_000, model="other")
        await used(made.resources, made, TODAY - DAY, Measure.TRAINED_TOKENS, 500_000)
        await used(made.resources, made, TODAY, Measure.CPU_MILLISECONDS, 500, model="other")
        await used(made.resources, made, TODAY, Measure.STORED_BYTES, 10**11, model=None)
        await used(made.resources, made, TODAY, Measure.JOBS_SUCCEEDED, 1)
        yield made


async def used(
    resources: Resources,
    tenant: Tenant,
    day: datetime,
    measure: Measure,
    amount: int,
    *,
    model: str | None = "hone-tiny",
) -> None:
    async with resources.write() as session:
        session.add(
            UsageRecord(
                id=new_id("usage_"),
                project_id=tenant.principal.project_id,
                organization_id=tenant.principal.organization_id,
                day=day,
                model=model,
                measure=measure,
                amount=amount,
            )
        )


async def usage_of(http: httpx.AsyncClient, **params: object) -> dict:
    asked = {"start_time": int((TODAY - 2 * DAY).timestamp())} | params
    answer = await http.get("/v1/organization/usage/fine_tuning", params=asked)  # pyright: ignore[reportArgumentType]
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_figures_by_day(tenant: Tenant) -> None:
    async with tenant.http() as http:
        page = await usage_of(http)
    assert (page["object"], page["has_more"], page["next_page"]) == ("page", False, None)
    assert [bucket["start_time"] for bucket in page["data"]] == [
        int((TODAY - days * DAY).timestamp()) for days in (2, 1, 0)
    ]
    empty, yesterday, today = page["data"]
    assert empty["results"] == []
    assert yesterday["end_time"] == today["start_time"]
    assert yesterday["results"] == [
        {
            "object": "organization.usage.fine_tuning.result",
            "project_id": None,
            "model": None,
            "gpu_seconds": 3600.0,
            "cpu_seconds": 0.0,
            "trained_tokens": 500_000,
            "stored_bytes": 0,
            "jobs": {"succeeded": 0, "failed": 0, "cancelled": 0},
        }
    ]
    (of_today,) = today["results"]
    assert (of_today["cpu_seconds"], of_today["stored_bytes"], of_today["jobs"]["succeeded"]) == (0.5, 10**11, 1)


async def test_figures_by_model_and_project(tenant: Tenant) -> None:
    async with tenant.http() as http:
        grouped = await usage_of(http, **{"group_by[]": ["model", "project_id"]})
        only = await usage_of(http, **{"models[]": ["other"]})
    found = {(one["project_id"], one["model"]): one["gpu_seconds"] for one in grouped["data"][1]["results"]}
    own = tenant.principal.project_id
    assert found == {(own, "hone-tiny"): 1800.0, (own, "other"): 1800.0}
    assert {one["model"] for one in grouped["data"][2]["results"]} == {None, "hone-tiny", "other"}
    assert [one["gpu_seconds"] for one in only["data"][1]["results"]] == [1800.0]


async def test_pages_follow_each_other(tenant: Tenant) -> None:
    async with tenant.http() as http:
        first = await usage_of(http, limit=2)
        second = await usage_of(http, limit=2, page=first["next_page"])
        whole = await usage_of(http)
        until = await usage_of(http, end_time=int((TODAY - DAY).timestamp()))
        future = await usage_of(http, start_time=int((TODAY + 9 * DAY).timestamp()))
        assert (first["has_more"], second["has_more"]) == (True, False)
        assert first["data"] + second["data"] == whole["data"]
        assert until["data"] == whole["data"][:1]
        assert (future["data"], future["has_more"]) == ([], False)
        for wrong in ({"page": "page_x"}, {"page": "page_1"}, {"start_time": "x"}, {"start_time": "1_0"}, {"limit": 0}):
            params = {"start_time": int(TODAY.timestamp()), **wrong}
            answer = await http.get("/v1/organization/usage/fine_tuning", params=params)
            assert answer.status_code == 400, wrong
            assert answer.json()["error"]["param"] == next(iter(wrong))


async def test_each_sees_its_own_and_the_operator_all(tenant: Tenant, priced: Served) -> None:
    everything = {"start_time": int((TODAY - DAY).timestamp()), "group_by[]": "project_id"}
    async with tenant_of(priced) as other:
        await used(other.resources, other, TODAY, Measure.TRAINED_TOKENS, 7)
        async with other.http() as http:
            theirs = await usage_of(http, **everything)
            named = await usage_of(http, **everything, **{"project_ids[]": tenant.principal.project_id})
        assert {one["project_id"] for bucket in theirs["data"] for one in bucket["results"]} == {
            other.principal.project_id
        }
        assert [bucket["results"] for bucket in named["data"]] == [[], []]
        async with other.resources.write() as session:
            key = await keys.add_to_default_project(session, name="operator")
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=priced.url, headers=headers) as operator:
            all_of_it = await usage_of(operator, **everything)
            one = await usage_of(operator, **everything, **{"project_ids[]": other.principal.project_id})
    seen = {one["project_id"] for bucket in all_of_it["data"] for one in bucket["results"]}
    assert {tenant.principal.project_id, other.principal.project_id} <= seen
    assert [one["trained_tokens"] for bucket in one["data"] for one in bucket["results"]] == [7]


async def test_costs_by_the_price_list_through_the_official_client(tenant: Tenant) -> None:
    async with AsyncOpenAI(
        api_key=tenant.key,
        admin_api_key=tenant.key,
        base_url=f"{tenant.url}/v1",
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        start = int((TODAY - DAY).timestamp())
        page = await client.admin.organization.usage.costs(start_time=start, group_by=["line_item", "project_id"])
        summed = await client.admin.organization.usage.costs(start_time=start)
        only = await client.admin.organization.usage.costs(start_time=start, line_items=["storage"], limit=2)
    yesterday, today = (
        {one.line_item: one for one in bucket.results if one.object == "organization.costs.result"}
        for bucket in page.data
    )
    amounts = {name: one.amount and one.amount.value for name, one in (yesterday | today).items()}
    assert amounts == {
        "hone-tiny, gpu": pytest.approx(3.6),
        "other, gpu": pytest.approx(1.8),
        "hone-tiny, trained_tokens": pytest.approx(1.0),
        "other, cpu": pytest.approx(0.00005),
        "storage": pytest.approx(1.0),  # 100 GB for a thirtieth of a month
    }
    gpu = yesterday["hone-tiny, gpu"]
    assert (gpu.quantity, gpu.quantity_unit, gpu.project_id) == (
        1800.0,
        "duration_seconds",
        tenant.principal.project_id,
    )
    totals = [
        one.amount for bucket in summed.data for one in bucket.results if one.object == "organization.costs.result"
    ]
    assert [(one.currency, one.value) for one in totals if one] == [
        ("eur", pytest.approx(6.4)),
        ("eur", pytest.approx(1.00005)),
    ]
    assert [len(bucket.results) for bucket in only.data] == [0, 1]


async def test_without_a_price_list_there_are_quantities_and_no_amounts(served: Served) -> None:
    async with tenant_of(served) as tenant, tenant.http() as http:
        await used(tenant.resources, tenant, TODAY, Measure.GPU_MILLISECONDS, 2000)
        params = {"start_time": int(TODAY.timestamp()), "group_by[]": "line_item"}
        answer = (await http.get("/v1/organization/costs", params=params)).json()
    (result,) = answer["data"][0]["results"]
    assert (result["amount"], result["quantity"]) == (None, 2.0)


def test_a_price_list_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(PRICES))
    settings = Settings.model_validate({"prices": str(path)})
    assert settings.prices == Prices.model_validate(PRICES)
    assert settings.prices == Settings.model_validate({"prices": json.dumps(PRICES)}).prices


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("{", "not JSON"),
        ("no/such/file", "cannot read it"),
        ('{"gb_month": 1}', "currency"),
        ('{"currency": "EUR"}', "pattern"),
        ('{"currency": "eur", "gb_month": -1}', "greater than or equal to 0"),
        ('{"currency": "eur", "models": {"*": {"gpu_hours": 1}}}', "Extra inputs"),
        ('{"currency": "eur", "gb_month": "x"}', "decimal"),
    ],
)
def test_a_price_list_that_is_none_is_refused(given: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Settings.model_validate({"prices": given})
