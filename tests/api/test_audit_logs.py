"""The audit log as it is read: OpenAI's list, a stream of lines, and what is noted of reads and refused keys."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from sqlalchemy import select

from app.db.audit_models import Action, AuditEntry
from app.resources import open_resources
from app.services import audit, keys
from tests import factories
from tests.backends import Backends
from tests.conftest import Served, Tenant, serve, tenant_of

PATH = "/v1/organization/audit_logs"


@pytest.fixture(scope="module")
def served(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Behind a proxy on this machine."""
    made = backends.new(tmp_path_factory.mktemp("audit") / "data")
    yield from serve(made.settings(trusted_proxies="127.0.0.1/32"))


@pytest.fixture
async def operator(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with open_resources(served.settings) as resources, resources.write() as session:
        key = await keys.add_to_default_project(session, name="operator")
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=20) as http:
        yield http


async def record(tenant: Tenant, *targets: str, action: Action = Action.FILE_CREATED) -> None:
    for target in targets:  # each in its own transaction, so that their order is known
        async with tenant.resources.write() as session:
            audit.record(session, tenant.principal, action, target)


async def listed(http: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    answer = await http.get(PATH, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def targets(http: httpx.AsyncClient, **params: Any) -> list[str]:
    return [one["hone"]["target_id"] for one in (await listed(http, **params))["data"]]


async def noted(tenant: Tenant, action: Action, **columns: str) -> list[AuditEntry]:
    """Of what is written a moment after its request."""
    async with asyncio.timeout(10):
        while True:
            async with tenant.resources.read() as session:
                query = select(AuditEntry).filter_by(action=action, **columns).order_by(AuditEntry.effective_at)
                if found := list(await session.scalars(query)):
                    return found
            await asyncio.sleep(0.05)


async def test_the_official_client_lists_it(tenant: Tenant) -> None:
    _, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    beside, _ = await factories.project(tenant.resources, beside=tenant.principal)
    async with tenant.http() as http:
        path = f"/v1/fine_tuning/checkpoints/{model.id}/permissions"
        made = await http.post(path, json={"project_ids": [beside.project_id]})
    await record(tenant, "file-a", "file-b", "file-c")
    async with AsyncOpenAI(
        api_key=tenant.key,
        admin_api_key=tenant.key,
        base_url=f"{tenant.url}/v1",
        max_retries=0,
        _strict_response_validation=True,
    ) as strict:
        logs = strict.admin.organization.audit_logs
        (one,) = (await logs.list(event_types=["checkpoint.permission.created"])).data
    assert one.type == "checkpoint.permission.created"
    assert one.checkpoint_permission_created is not None
    assert one.checkpoint_permission_created.id == made.json()["data"][0]["id"]
    assert one.actor is not None
    assert one.actor.api_key is not None
    assert one.actor.api_key.id == tenant.principal.key_id
    assert one.project is not None
    assert one.project.id == tenant.principal.project_id
    async with AsyncOpenAI(
        api_key=tenant.key, admin_api_key=tenant.key, base_url=f"{tenant.url}/v1", max_retries=0
    ) as client:
        walked = [entry async for entry in client.admin.organization.audit_logs.list(limit=2)]
        named = await client.admin.organization.audit_logs.list(
            resource_ids=["file-b"],
            actor_ids=[tenant.principal.key_id],
            project_ids=[tenant.principal.project_id],
            effective_at={"gte": walked[0].effective_at - 60, "lte": walked[0].effective_at},
        )
    assert len(walked) == len({entry.id for entry in walked})
    found = [entry.to_dict()["file.created"] for entry in walked if entry.to_dict()["type"] == "file.created"]
    assert found == [{"id": "file-c"}, {"id": "file-b"}, {"id": "file-a"}]
    assert [entry.to_dict()["file.created"] for entry in named.data] == [{"id": "file-b"}]


async def test_pages_go_both_ways(tenant: Tenant) -> None:
    await record(tenant, "1", "2", "3", "4", "5")
    only = {"event_types[]": "file.created"}
    async with tenant.http() as http:
        first = await listed(http, limit=2, **only)
        second = await listed(http, limit=2, after=first["last_id"], **only)
        back = await listed(http, limit=2, before=second["first_id"], **only)
        start = await listed(http, limit=2, before=first["first_id"], **only)
        unknown = await http.get(PATH, params={"before": "audit_log-unknown"})
    assert [one["hone"]["target_id"] for one in first["data"] + second["data"]] == ["5", "4", "3", "2"]
    assert (first["has_more"], second["has_more"], back["has_more"]) == (True, True, False)
    assert back["data"] == first["data"]
    assert start == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "before")


async def test_times_bound_it_by_whole_seconds(tenant: Tenant) -> None:
    await record(tenant, "now")
    async with tenant.http() as http:
        (one,) = (await listed(http, **{"event_types[]": "file.created"}))["data"]
        at = one["effective_at"]
        for bound, is_in in (("gte", True), ("lte", True), ("gt", False), ("lt", False)):
            found = await targets(http, **{"event_types[]": "file.created", f"effective_at[{bound}]": at})
            assert found == (["now"] if is_in else []), bound
        wrong = await http.get(PATH, params={"effective_at[gt]": "yesterday"})
    assert wrong.status_code == 400


async def test_nobody_sees_anothers(tenant: Tenant, other_tenant: Tenant, operator: httpx.AsyncClient) -> None:
    await record(tenant, "file-mine")
    async with other_tenant.http() as http:
        theirs = await listed(http, limit=100)
        asked = await targets(http, **{"project_ids[]": tenant.principal.project_id})
        lines = (await http.get(f"{PATH}/export")).text
    assert {one["project"]["id"] for one in theirs["data"]} == {other_tenant.principal.project_id}
    assert asked == []
    assert "file-mine" not in lines
    assert "file-mine" in await targets(operator, **{"project_ids[]": tenant.principal.project_id})


async def test_downloads_are_noted_and_looking_is_not(tenant: Tenant) -> None:
    file = await factories.file(tenant.resources, tenant.principal)
    job, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    async with tenant.http() as http:
        assert (await http.head(f"/v1/files/{file.id}/content")).status_code == 200
        assert (await http.get(f"/v1/files/{file.id}")).status_code == 200
        assert (await http.get("/v1/files/file-unknown/content")).status_code == 404
        content = await http.get(f"/v1/files/{file.id}/content", headers={"X-Forwarded-For": "198.51.100.7, bogus"})
        forwarded = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7"}
        adapter = await http.get(f"/v1/fine_tuning/jobs/{job.id}/adapter", headers=forwarded)
    assert (content.status_code, adapter.status_code) == (200, 200)
    (downloaded,) = await noted(tenant, Action.FILE_DOWNLOADED, target_id=file.id)
    assert downloaded.request_id == content.headers["x-request-id"]
    assert downloaded.source_address == "127.0.0.1"  # what the proxy has added is no address
    (taken,) = await noted(tenant, Action.ADAPTER_DOWNLOADED, target_id=model.id)
    assert (taken.source_address, taken.actor_id) == ("198.51.100.7", tenant.principal.key_id)


async def test_refused_keys_are_counted_by_their_address(served: Served, tenant: Tenant) -> None:
    wrong = {"Authorization": "Bearer sk-hone-wrong-key-0123456789", "X-Forwarded-For": "192.0.2.77"}
    async with httpx.AsyncClient(base_url=served.url) as http:
        for _ in range(5):
            assert (await http.get("/v1/models", headers=wrong)).status_code == 401
        assert (await http.get("/v1/models")).status_code == 401  # without a key nobody has tried one
    found = await noted(tenant, Action.LOGIN_FAILED, source_address="192.0.2.77")
    assert len(found) == 1
    assert (found[0].outcome, found[0].actor_kind, found[0].actor_id) == ("failed", "anonymous", None)
    assert found[0].details is not None
    assert found[0].details["error_code"] == "invalid_api_key"
    assert 1 <= found[0].details["count"] <= 5
    assert "sk-hone" not in json.dumps(found[0].details)


async def test_an_export_has_every_entry_once_and_is_itself_noted(tenant: Tenant) -> None:
    names = [f"file-{number:04}" for number in range(1203)]
    async with tenant.resources.write() as session:
        for name in names:
            audit.record(session, tenant.principal, Action.FILE_CREATED, name)
    async with tenant.http() as http:
        answer = await http.get(f"{PATH}/export", params={"event_types[]": "file.created"})
        (newest,) = (await listed(http, limit=1, **{"event_types[]": "file.created"}))["data"]
    assert answer.headers["content-type"].startswith("application/jsonl")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["hone"]["target_id"] for line in lines] == names
    assert lines[-1] == newest
    assert len(await noted(tenant, Action.AUDIT_LOG_EXPORTED, request_id=answer.headers["x-request-id"])) == 1


async def test_only_a_project_that_has_entries_has_an_export(served: Served) -> None:
    async with tenant_of(served) as tenant, tenant.http() as http:
        answer = await http.get(f"{PATH}/export", params={"event_types[]": "file.created"})
    assert (answer.status_code, answer.text) == (200, "")
