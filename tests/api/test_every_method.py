"""Every method of the official client for what Hone offers, in its usual and its strict mode, and each error."""

import inspect
from collections.abc import AsyncIterator, Iterator

import pytest
from openai import APIStatusError, AsyncOpenAI, AuthenticationError, NotFoundError, RateLimitError
from openai._resource import AsyncAPIResource

from tests.api import sdk_methods
from tests.api.sdk_methods import METHODS, Scene
from tests.backends import Backends, Site
from tests.conftest import Served, Tenant, serve, tenant_of
from tests.servers.receiver import receiving, says

REMOTE = sorted(name for name, method in METHODS.items() if not method.is_local)


@pytest.fixture(scope="module")
def near(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that may call this machine, and shows paused jobs as strict clients take them."""
    made = backends.new(tmp_path_factory.mktemp("near") / "data")
    yield from serve(made.settings(outgoing_allowed_networks="127.0.0.0/8", paused_status="queued"))


@pytest.fixture
async def owner(near: Served) -> AsyncIterator[Tenant]:
    async with tenant_of(near) as made:
        yield made


@pytest.fixture
async def there(owner: Tenant) -> AsyncIterator[Scene]:
    with receiving(says(200)) as receiver:
        yield await sdk_methods.scene(owner.resources, owner.principal, receiver=receiver.url)


@pytest.fixture(params=["strict", "loose"])
async def client(request: pytest.FixtureRequest, owner: Tenant) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        api_key=owner.key,
        base_url=f"{owner.url}/v1",
        max_retries=0,
        _strict_response_validation=request.param == "strict",
    ) as made:
        yield made


def methods_of(resource: object, path: str) -> Iterator[str]:
    for name in dir(type(resource)):
        if name.startswith(("_", "with_")):
            continue
        member = getattr(resource, name)
        if isinstance(member, AsyncAPIResource):
            yield from methods_of(member, f"{path}.{name}")
        elif inspect.ismethod(member):
            yield f"{path}.{name}"


def test_the_table_has_every_method_of_the_client() -> None:
    client = AsyncOpenAI(api_key="none")
    there_are = {name for path in sdk_methods.RESOURCES for name in methods_of(getattr(client, path), path)}
    assert there_are == METHODS.keys()


@pytest.mark.parametrize("name", sorted(METHODS))
async def test_it_works(name: str, client: AsyncOpenAI, there: Scene) -> None:
    await METHODS[name].works(client, there)


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if method.missing))
async def test_what_is_not_there_is_told(name: str, owner: Tenant, there: Scene) -> None:
    missing = METHODS[name].missing
    assert missing is not None
    with pytest.raises(NotFoundError) as error:
        await missing(owner.client, there)
    assert error.value.type == "invalid_request_error"
    assert error.value.param
    assert error.value.request_id


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if method.refused))
async def test_what_is_refused_is_not_tried_again(name: str, owner: Tenant, there: Scene) -> None:
    method = METHODS[name]
    assert method.refused is not None
    with pytest.raises(APIStatusError) as error:
        await method.refused(owner.client.with_options(max_retries=2), there)
    assert (error.value.status_code, error.value.type) == (method.status, "invalid_request_error")
    assert error.value.response.request.headers["x-stainless-retry-count"] == "0"


async def test_no_method_works_without_a_key_of_the_server(owner: Tenant, there: Scene) -> None:
    async with AsyncOpenAI(api_key="sk-hone-unknown-key", base_url=f"{owner.url}/v1", max_retries=0) as stranger:
        for name in REMOTE:
            with pytest.raises(AuthenticationError) as error:
                await METHODS[name].works(stranger, there)
            assert error.value.code == "invalid_api_key", name


async def test_every_method_is_told_to_wait(site: Site) -> None:
    serving = serve(site.settings(requests_per_minute=1))
    async with tenant_of(next(serving)) as tenant:
        there = await sdk_methods.scene(tenant.resources, tenant.principal, receiver="https://receiver.example/")
        await tenant.client.models.list()
        for name in REMOTE:
            with pytest.raises(RateLimitError) as error:
                await METHODS[name].works(tenant.client, there)
            assert (error.value.code, error.value.type) == ("rate_limit_exceeded", "requests"), name
            assert int(error.value.response.headers["retry-after"]) > 0
    assert list(serving) == []
