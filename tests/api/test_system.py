"""What is true of the server as a whole: health, headers, failures, the document, what an import loads."""

import asyncio
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from starlette.types import Message, Scope

from app import main, openapi
from app.api import middleware
from app.api.middleware import RequestContext
from app.db import migrations
from app.main import create_app
from app.resources import Resources
from app.settings import Settings
from tests.conftest import Served, Tenant, serve
from tests.servers import required
from tests.servers.redis import running


@pytest.fixture
def served_without_database(tmp_path: Path) -> Iterator[Served]:
    database = tmp_path / "elsewhere" / "hone.db"
    url = f"sqlite+aiosqlite:///{database}"
    settings = Settings.model_validate({"data_directory": tmp_path / "data", "database_url": url})
    migrations.upgrade(settings.resolved_database_url)
    for server in serve(settings):
        shutil.rmtree(database.parent)  # the server has not connected yet
        yield server


async def test_health(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        alive, ready = await http.get("/healthz"), await http.get("/readyz")
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "queue": "ok"})


async def test_the_page_that_documents_the_api_needs_nothing_from_elsewhere(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        page = await http.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert all(path.startswith("docs/") for path in loaded)
        assert {(await http.get(f"/{path}")).status_code for path in loaded} == {200}
        (document,) = re.findall(r'url: "([^"]+)"', (await http.get("/docs/start.js")).text)
        assert (await http.get(f"/{document}")).json() == main.describe()
        missing = await http.get("/docs/static/other.js")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")


async def test_without_its_redis_the_server_is_ready_and_says_so(tmp_path: Path) -> None:
    required.skip_without("redis-server")
    with running(tmp_path / "redis") as redis:
        settings = Settings(data_directory=tmp_path / "data", redis_url=SecretStr(redis.url))
        for server in serve(settings):
            async with httpx.AsyncClient(base_url=server.url) as http:
                assert (await http.get("/readyz")).json() == {"status": "ok", "queue": "ok"}
                redis.freeze()
                answer = await http.get("/readyz")
                assert (answer.status_code, answer.json()) == (200, {"status": "ok", "queue": "away"})
                redis.kill()
                assert (await http.get("/readyz")).json()["queue"] == "away"


async def test_without_a_database_the_server_says_so(served_without_database: Served) -> None:
    async with httpx.AsyncClient(base_url=served_without_database.url) as http:
        assert (await http.get("/healthz")).status_code == 200
        for path in ("/readyz", "/v1/models"):
            answer = await http.get(path, headers={"Authorization": "Bearer sk-hone-something-long"})
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "2"
            assert answer.headers["x-should-retry"] == "true"
            assert answer.json()["error"]["type"] == "server_error"


async def test_every_answer_carries_openais_headers(tenant: Tenant) -> None:
    async with tenant.http() as http:
        known, unknown = await http.get("/v1/models"), await http.get("/nowhere")
    for answer in (known, unknown):
        assert len(answer.headers["x-request-id"]) == len("req_") + 32
        assert answer.headers["openai-version"] == "2020-10-01"
        assert answer.headers["openai-processing-ms"].isdigit()
    assert known.headers["openai-organization"] == tenant.principal.organization_id
    assert "openai-organization" not in unknown.headers
    assert known.headers["x-request-id"] != unknown.headers["x-request-id"]
    assert (await tenant.client.models.list())._request_id is not None


async def test_the_access_log_holds_no_query_and_no_forged_line(
    tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="app.access")
    async with tenant.http() as http:
        await http.get("/v1/files/a%0Ab?api_key=secret")
    lines: list[str] = []
    for _ in range(1000):  # the line is written after the answer
        if lines := [line for line in caplog.messages if "/v1/files/a%0Ab" in line]:
            break
        await asyncio.sleep(0.01)
    assert lines[0].startswith("GET /v1/files/a%0Ab 404 ")
    assert "secret" not in "".join(caplog.messages)


async def test_an_unforeseen_error_is_logged_once_and_names_the_request(
    resources: Resources, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(resources)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret detail")

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get("/broken")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, None)
    assert answer.headers["x-request-id"] in error["message"]
    assert "secret" not in answer.text
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_a_body_that_stops_arriving_is_given_up(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_IDLE_SECONDS", 0.1)
    app = RequestContext(create_app(resources))

    async def stalling() -> AsyncGenerator[bytes]:
        yield b'{"model": '
        await asyncio.Event().wait()

    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/fine_tuning/jobs",
        "raw_path": b"/v1/fine_tuning/jobs",
        "query_string": b"",
        "headers": [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-length", b"100")],
    }
    sent: list[Message] = []
    body = stalling()

    async def receive() -> Message:
        return {"type": "http.request", "body": await anext(body), "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    await body.aclose()


def test_the_committed_openapi_document_is_current() -> None:
    assert openapi.PATH.read_text() == openapi.render(), "run `python -m app.openapi`"


def test_the_api_loads_no_training_library() -> None:
    code = (
        "import sys, app.main, app.openapi\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'arq', 'redis'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
