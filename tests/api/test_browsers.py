"""What browsers are told by every answer, which pages may call, and what the page at /docs may load."""

import re
from collections.abc import Iterator

import httpx
import pytest
from pydantic import ValidationError

from app.main import create_app
from app.resources import Resources
from app.settings import Settings
from tests import factories
from tests.backends import Backends
from tests.conftest import Served, Tenant, serve

PAGE = "https://app.example.com"
_ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'"


@pytest.fixture(scope="module")
def open_to_a_page(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = backends.new(tmp_path_factory.mktemp("page") / "data")
    yield from serve(made.settings(cors_allowed_origins=f"{PAGE}, http://localhost:3000", docs_page="false"))


def assert_guarded(answer: httpx.Response, *, policy: str = _NOTHING) -> None:
    assert {name: answer.headers.get(name) for name in _ALWAYS} == _ALWAYS
    assert answer.headers["content-security-policy"] == policy
    assert answer.headers["cache-control"] == "no-store"


async def test_every_answer_is_guarded(tenant: Tenant) -> None:
    file = await factories.file(tenant.resources, tenant.principal)
    job = await factories.job(tenant.resources, tenant.principal)
    async with tenant.http() as http:
        for method, path, status in (
            ("GET", "/v1/models", 200),
            ("GET", f"/v1/files/{file.id}/content", 200),
            ("HEAD", f"/v1/files/{file.id}/content", 200),
            ("GET", f"/v1/fine_tuning/jobs/{job.id}/logs", 200),
            ("GET", "/v1/files/none", 404),
            ("GET", "/nowhere", 404),
            ("POST", "/v1/files", 400),
            ("OPTIONS", "/v1/files", 405),
            ("GET", "/healthz", 200),
            ("GET", "/openapi.json", 200),
        ):
            answer = await http.request(method, path)
            assert answer.status_code == status, path
            assert_guarded(answer)
        assert_guarded(await http.get("/v1/models", headers={"x-much": "a" * 65536}))
        assert_guarded(await http.get("/v1/models", headers={"Authorization": "Bearer sk-wrong"}))
        stream = f"/v1/fine_tuning/jobs/{job.id}/events?stream=true"
        async with http.stream("GET", stream) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert_guarded(answer)


async def test_an_unforeseen_error_is_guarded(resources: Resources) -> None:
    app = create_app(resources)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        answer = await http.get("/broken")
    assert answer.status_code == 500
    assert_guarded(answer)


async def test_downloads_are_attachments_of_no_type_that_is_shown(tenant: Tenant) -> None:
    file = await factories.file(tenant.resources, tenant.principal)
    async with tenant.http() as http:
        answer = await http.get(f"/v1/files/{file.id}/content")
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["content-type"] == "application/octet-stream"


async def test_the_docs_page_runs_nothing_but_this_servers_files(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        page = await http.get("/docs")
        static = await http.get("/docs/static/swagger-ui.css")
    policy = page.headers["content-security-policy"]
    assert_guarded(page, policy=policy)
    assert "unsafe" not in policy
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    scripts = re.findall(r"<script([^>]*)>([^<]*)</script>", page.text)
    assert all("src=" in attributes and not inside for attributes, inside in scripts)
    assert not re.search(r"\son\w+=|style=|<style", page.text)
    assert static.headers["x-content-type-options"] == "nosniff"
    assert "cache-control" not in static.headers
    assert static.headers["etag"]


async def test_the_docs_page_can_be_left_out(open_to_a_page: Served) -> None:
    async with httpx.AsyncClient(base_url=open_to_a_page.url, timeout=30) as http:
        for path in ("/docs", "/docs/start.js", "/docs/static/swagger-ui.css", "/openapi.json"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


async def test_no_page_may_call_unless_it_is_named(served: Served) -> None:
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        for answer in (await http.options("/v1/models", headers=asks), await http.get("/v1/models", headers=asks)):
            assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
async def test_a_page_that_is_named_may_call(open_to_a_page: Served, origin: str) -> None:
    asks = {
        "Origin": origin,
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "authorization,x-stainless-retry-count",
    }
    async with httpx.AsyncClient(base_url=open_to_a_page.url, timeout=30) as http:
        allowed = await http.options("/v1/files/file-1", headers=asks)
        answer = await http.get("/v1/models", headers={"Origin": origin})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-headers"] == asks["Access-Control-Request-Headers"]
    assert "DELETE" in allowed.headers["access-control-allow-methods"]
    for one in (allowed, answer):
        assert one.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in one.headers
        assert "Origin" in one.headers["vary"]
    assert answer.status_code == 401  # a page is not a key
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert_guarded(answer)


@pytest.mark.parametrize("origin", ["https://evil.example", f"{PAGE}.evil.example", "http://app.example.com", "null"])
async def test_others_may_not(open_to_a_page: Served, origin: str) -> None:
    asks = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    async with httpx.AsyncClient(base_url=open_to_a_page.url, timeout=30) as http:
        refused = await http.options("/v1/models", headers=asks)
        answer = await http.get("/v1/models", headers=asks)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["*", "null", "https://*.example.com", f"{PAGE}/", "app.example.com", "HTTPS://A.b"])
def test_what_no_browser_sends_is_no_origin(origin: str) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"cors_allowed_origins": origin})
