"""Who may call at all."""

import asyncio

import pytest
from openai import AsyncOpenAI, AuthenticationError

from tests import factories
from tests.conftest import Tenant


async def test_an_unknown_key_is_refused_as_at_openai(tenant: Tenant) -> None:
    async with AsyncOpenAI(api_key="sk-hone-unknown-key-wxyz", base_url=f"{tenant.url}/v1", max_retries=0) as client:
        with pytest.raises(AuthenticationError) as refused:
            await client.models.list()
    assert refused.value.body == {
        "message": "Incorrect API key provided: sk-...wxyz.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }


async def test_a_revoked_key_is_refused_at_once(tenant: Tenant) -> None:
    await tenant.client.models.list()
    await factories.revoke(tenant.resources, tenant.key)
    with pytest.raises(AuthenticationError):
        await tenant.client.models.list()


async def test_no_key_and_odd_keys(tenant: Tenant, subtests: pytest.Subtests) -> None:
    key = tenant.key.encode()
    cases = {
        "none": [],
        "empty": [b"Authorization: Bearer "],
        "scheme only": [b"Authorization: Bearer"],
        "another scheme": [b"Authorization: Basic " + key],
        "bare": [b"Authorization: " + key],
        "two headers": [b"Authorization: Bearer " + key, b"Authorization: Bearer " + key],
        "10 kB": [b"Authorization: Bearer " + b"x" * 10_000],
        "not ASCII": [b"Authorization: Bearer " + key + "é☃".encode()],
        "another header": [b"X-Api-Key: " + key],
    }
    for name, headers in cases.items():
        with subtests.test(name):
            answer = await _send(tenant, b"GET /v1/files HTTP/1.1", [b"Host: x", *headers])
            assert answer.startswith(b"HTTP/1.1 401 "), answer
            assert b'"type":"invalid_request_error"' in answer
            assert tenant.key.encode() not in answer
    in_query = await _send(tenant, b"GET /v1/files?api_key=" + key + b" HTTP/1.1", [b"Host: x"])
    assert in_query.startswith(b"HTTP/1.1 401 ")
    lower_case = await _send(tenant, b"GET /v1/files HTTP/1.1", [b"Host: x", b"authorization: bearer " + key])
    assert lower_case.startswith(b"HTTP/1.1 200 ")


async def test_requests_that_the_http_server_lets_through(tenant: Tenant) -> None:
    authorized = b"Authorization: Bearer " + tenant.key.encode()
    no_host = await _send(tenant, b"GET /v1/files HTTP/1.1", [authorized])
    assert no_host.startswith(b"HTTP/1.1 400 ")
    long_header = await _send(tenant, b"GET /v1/files HTTP/1.1", [b"Host: x", authorized, b"X: " + b"y" * 200_000])
    assert long_header.startswith(b"HTTP/1.1 431 ")
    nul = await _send(tenant, b"GET /v1/files HTTP/1.1", [b"Host: x", authorized + b"\0"])
    assert nul.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))


async def _send(tenant: Tenant, request_line: bytes, headers: list[bytes]) -> bytes:
    host, port = tenant.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"\r\n".join([request_line, *headers, b"Connection: close", b"", b""]))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer
