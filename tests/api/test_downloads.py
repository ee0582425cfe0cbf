"""Downloads: whole or recognizably not, and straight from S3 where clients reach it."""

import json
from collections.abc import AsyncIterator, Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests import factories
from tests.api import test_node_client as node
from tests.backends import Backends
from tests.conftest import Served, Tenant, serve, tenant_of
from tests.servers.relay import Relay, relaying
from tests.servers.s3 import S3Server

CONTENT = b"0123456789" * 400_000


async def test_head_tells_all_but_the_bytes(tenant: Tenant) -> None:
    file = await factories.file(tenant.resources, tenant.principal, content=b"0123456789")
    job, _ = await factories.succeeded_job(tenant.resources, tenant.principal)
    async with tenant.http() as http:
        for path in (f"/v1/files/{file.id}/content", f"/v1/fine_tuning/jobs/{job.id}/adapter"):
            whole = await http.get(path)
            head = await http.head(path)
            assert (head.status_code, head.content) == (200, b"")
            for name in ("content-length", "etag", "repr-digest", "content-disposition", "accept-ranges"):
                assert head.headers[name] == whole.headers[name]
        assert (await http.head("/v1/files/file-unknown/content")).status_code == 404


@pytest.mark.parametrize("damage", ["another byte", "shorter", "longer"])
async def test_a_file_that_is_not_what_was_uploaded_never_comes_whole(tenant: Tenant, damage: str) -> None:
    file = await factories.file(tenant.resources, tenant.principal, content=CONTENT)
    wrong = {"another byte": b"X" + CONTENT[1:], "shorter": CONTENT[:-1], "longer": CONTENT + b"0"}[damage]
    await factories.stored(tenant.resources, file.storage_key, wrong)
    received = b""
    with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - what came before the error counts
        async with tenant.http() as http, http.stream("GET", f"/v1/files/{file.id}/content") as answer:
            assert answer.status_code == 200
            async for chunk in answer.aiter_bytes():
                received += chunk
    assert len(received) < len(CONTENT)


async def test_a_small_file_that_is_damaged_is_an_error_from_the_start(tenant: Tenant) -> None:
    file = await factories.file(tenant.resources, tenant.principal, content=b"0123456789")
    await factories.stored(tenant.resources, file.storage_key, b"0123456780")
    async with tenant.http() as http:
        answer = await http.get(f"/v1/files/{file.id}/content")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"


@pytest.fixture(scope="module")
def relay(rclone_server: S3Server) -> Iterator[Relay]:
    with relaying(rclone_server.url) as made:
        yield made


@pytest.fixture(scope="module")
def served_from_s3(
    backends: Backends, rclone_server: S3Server, relay: Relay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server whose clients reach the bucket, through the relay."""
    site = backends.new(tmp_path_factory.mktemp("s3") / "data")
    objects = rclone_server.settings(rclone_server.new_bucket())
    yield from serve(site.settings(s3_public_url=relay.url, **objects))


@pytest.fixture
async def s3_tenant(served_from_s3: Served) -> AsyncIterator[Tenant]:
    async with tenant_of(served_from_s3) as made:
        yield made


async def test_the_python_client_follows_to_the_bucket_and_keeps_its_key(s3_tenant: Tenant, relay: Relay) -> None:
    sent = await s3_tenant.client.files.create(file=("my däta.txt", CONTENT), purpose="user_data")
    relay.received = b""
    answer = await s3_tenant.client.files.with_raw_response.content(sent.id)
    assert answer.content == CONTENT
    assert str(answer.url).startswith(relay.url)
    disposition = answer.headers["content-disposition"]
    assert disposition == "attachment; filename=\"my d_ta.txt\"; filename*=UTF-8''my%20d%C3%A4ta.txt"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert b"GET /" in relay.received
    assert s3_tenant.key.encode() not in relay.received
    assert b"authorization:" not in relay.received.lower()

    part = await s3_tenant.client.files.with_raw_response.content(sent.id, extra_headers={"Range": "bytes=3-5"})
    assert part.content == b"345"


async def test_a_link_lasts_five_minutes_and_opens_one_object(s3_tenant: Tenant) -> None:
    file = await factories.file(s3_tenant.resources, s3_tenant.principal, content=b"0123456789")
    other = await factories.file(s3_tenant.resources, s3_tenant.principal, content=b"secret")
    async with s3_tenant.http() as http:
        answer = await http.get(f"/v1/files/{file.id}/content")
        head = await http.head(f"/v1/files/{file.id}/content")
    assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
    assert (head.status_code, head.headers["content-length"]) == (200, "10")
    link = answer.headers["location"]
    assert parse_qs(urlsplit(link).query)["X-Amz-Expires"] == ["300"]
    assert file.filename not in urlsplit(link).path
    async with httpx.AsyncClient() as anyone:
        assert (await anyone.get(link)).content == b"0123456789"
        for forged in (link.replace(file.id, other.id), link.replace("X-Amz-Expires=300", "X-Amz-Expires=30000")):
            assert (await anyone.get(forged)).status_code == 403


async def test_the_node_client_follows_too(s3_tenant: Tenant, relay: Relay) -> None:
    await node.install()
    file = await factories.file(s3_tenant.resources, s3_tenant.principal, content=b"0123456789")
    relay.received = b""
    environment = {
        "OPENAI_BASE_URL": f"{s3_tenant.url}/v1",
        "OPENAI_API_KEY": s3_tenant.key,
        "HONE_FILE": file.id,
    }
    seen = json.loads(await node.run("node", "redirect.mjs", environment=environment))
    assert seen["text"] == "0123456789"
    assert seen["url"].startswith(relay.url)
    assert s3_tenant.key.encode() not in relay.received
    assert b"authorization:" not in relay.received.lower()
