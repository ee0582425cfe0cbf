"""The limit on requests, as the official client meets it."""

from collections.abc import Iterator

import pytest
from openai import RateLimitError

from tests.backends import Site
from tests.conftest import Served, Tenant, serve, tenant_of


@pytest.fixture
def limited(site: Site) -> Iterator[Served]:
    yield from serve(site.settings(requests_per_minute=60))


async def list_without_end(tenant: Tenant) -> None:
    for _ in range(200):
        await tenant.client.models.list()


async def test_requests_beyond_the_limit_are_told_when_to_come_again(limited: Served) -> None:
    async with tenant_of(limited) as tenant:
        first = await tenant.client.models.with_raw_response.list()
        assert first.headers["x-ratelimit-limit-requests"] == "60"
        assert first.headers["x-ratelimit-remaining-requests"] == "59"
        assert first.headers["x-ratelimit-reset-requests"] == "1s"
        with pytest.raises(RateLimitError) as refused:
            await list_without_end(tenant)
        assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
        told = refused.value.response.headers
        assert (told["retry-after"], told["x-should-retry"]) == ("1", "true")
        assert told["x-ratelimit-remaining-requests"] == "0"
        # With its own retries the client waits and is served.
        assert (await tenant.client.with_options(max_retries=2).models.list()).data


async def test_without_a_limit_no_headers_tell_of_one(tenant: Tenant) -> None:
    listed = await tenant.client.models.with_raw_response.list()
    assert not [name for name in listed.headers if name.startswith("x-ratelimit")]
