"""GET .../events?stream=true: followed through the official client, and as the bytes that any client sees."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest
from openai import AsyncStream
from openai.types.fine_tuning import FineTuningJobEvent

from app.api import events as events_api
from app.db.models import JobStatus
from tests import factories
from tests.backends import Site
from tests.conftest import Tenant, serve, tenant_of

PATIENCE_SECONDS = 20


async def follow(tenant: Tenant, job_id: str, **query: str) -> AsyncStream[FineTuningJobEvent]:
    return await tenant.client.get(
        f"/fine_tuning/jobs/{job_id}/events",
        cast_to=FineTuningJobEvent,
        options={"params": {"stream": "true", **query}},
        stream=True,
        stream_cls=AsyncStream[FineTuningJobEvent],
    )


async def running_job(tenant: Tenant, *, told: int) -> str:
    job_id = (await factories.job(tenant.resources, tenant.principal, status=JobStatus.RUNNING)).id
    await factories.add_events(tenant.resources, job_id, told)
    return job_id


def path(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{job_id}/events?stream=true"


async def test_the_official_client_follows_a_job_to_its_end(tenant: Tenant) -> None:
    job_id = await running_job(tenant, told=2)
    seen: list[str] = []
    async with asyncio.timeout(PATIENCE_SECONDS), await follow(tenant, job_id) as stream:
        async for event in stream:
            seen.append(event.message)
            if len(seen) == 2:
                await factories.add_events(tenant.resources, job_id, 1)
            if len(seen) == 3:
                await tenant.client.fine_tuning.jobs.cancel(job_id)
    listed = [event.message async for event in tenant.client.fine_tuning.jobs.list_events(job_id)]
    assert seen == listed[::-1]
    assert seen[-1] == "The job has been cancelled"


async def test_each_event_is_a_message_with_its_id_and_done_is_last(tenant: Tenant) -> None:
    job_id = await running_job(tenant, told=250)
    await tenant.client.fine_tuning.jobs.cancel(job_id)
    async with tenant.http() as http:
        answer = await http.get(path(job_id))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    messages = answer.text.removesuffix("\n\n").split("\n\n")
    assert messages.pop() == "data: [DONE]"
    listed = [event async for event in tenant.client.fine_tuning.jobs.list_events(job_id, limit=1000)]
    assert len(messages) == len(listed) == 251
    for message, event in zip(messages, reversed(listed), strict=True):
        id_line, data_line = message.split("\n")
        assert id_line == f"id: {event.id}"
        assert json.loads(data_line.removeprefix("data: ")) == event.to_dict()


async def test_a_stream_goes_on_where_it_was_cut_off(tenant: Tenant) -> None:
    job_id = await running_job(tenant, told=6)
    await tenant.client.fine_tuning.jobs.cancel(job_id)
    listed = [event.id async for event in tenant.client.fine_tuning.jobs.list_events(job_id)][::-1]

    assert [event.id async for event in await follow(tenant, job_id, after=listed[2])] == listed[3:]
    assert [event.id async for event in await follow(tenant, job_id, after=listed[-1])] == []
    async with tenant.http() as http:
        cut = await http.get(f"{path(job_id)}&after={listed[0]}", headers={"Last-Event-ID": listed[4]})
    assert [line[4:] for line in cut.text.splitlines() if line.startswith("id: ")] == listed[5:]


async def test_what_cannot_be_followed_is_refused_before_the_stream(tenant: Tenant, other_tenant: Tenant) -> None:
    job_id = await running_job(tenant, told=1)
    async with tenant.http() as http, other_tenant.http() as others:
        unknown = await http.get(path(job_id), headers={"Last-Event-ID": "ftevent-unknown"})
        nonsense = await http.get(path(job_id).replace("true", "perhaps"))
        missing = await http.get(path("ftjob-unknown"))
        foreign = await others.get(path(job_id))
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "after")
    assert (nonsense.status_code, nonsense.json()["error"]["param"]) == (400, "stream")
    for answer in (missing, foreign):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "fine_tune_not_found")


async def test_the_official_client_is_not_disturbed_by_what_keeps_the_connection_alive(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "_KEEP_ALIVE_SECONDS", 0.0)
    monkeypatch.setattr(events_api, "_LOOK_SECONDS", 0.02)
    job_id = await running_job(tenant, told=1)
    async with asyncio.timeout(PATIENCE_SECONDS):
        stream = await follow(tenant, job_id)
        first = await anext(stream)
        await asyncio.sleep(0.2)
        await tenant.client.fine_tuning.jobs.cancel(job_id)
        assert [first.message, *[event.message async for event in stream]][-1] == "The job has been cancelled"
        async with tenant.http() as http, http.stream("GET", path(await running_job(tenant, told=0))) as answer:
            assert await anext(answer.aiter_lines()) == ": keep-alive"


async def test_a_stream_ends_when_its_key_is_revoked(other_tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_api, "_KEY_SECONDS", 0.1)
    monkeypatch.setattr(events_api, "_LOOK_SECONDS", 0.02)
    job_id = await running_job(other_tenant, told=1)
    async with asyncio.timeout(PATIENCE_SECONDS), other_tenant.http() as http:
        async with http.stream("GET", path(job_id)) as answer:
            lines = answer.aiter_lines()
            told = [await anext(lines)]
            await asyncio.sleep(0.3)
            await factories.add_events(other_tenant.resources, job_id, 1)  # the key is still good
            told += [await anext(lines) for _ in range(4)]
            await factories.revoke(other_tenant.resources, other_tenant.key)
            told += [line async for line in lines]
        assert (await http.get(path(job_id))).status_code == 401
    assert len([line for line in told if line.startswith("id: ")]) == 2
    assert "data: [DONE]" not in told


async def test_followers_hold_no_connection_of_the_databases(tenant: Tenant) -> None:
    """There are more of them than connections."""
    job_id = await running_job(tenant, told=1)
    async with asyncio.timeout(PATIENCE_SECONDS * 2), AsyncExitStack() as opened:
        streams = [await opened.enter_async_context(await follow(tenant, job_id)) for _ in range(30)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        await tenant.client.fine_tuning.jobs.cancel(job_id)
        for stream in streams:
            assert [event.message async for event in stream] == ["The job has been cancelled"]


async def test_a_key_has_so_many_streams_and_no_more(site: Site) -> None:
    serving = serve(site.settings(streams_per_key=2))
    served = next(serving)
    async with tenant_of(served) as tenant, tenant_of(served) as other, asyncio.timeout(PATIENCE_SECONDS):
        job_id, theirs = await running_job(tenant, told=1), await running_job(other, told=1)
        log = f"/v1/fine_tuning/jobs/{job_id}/logs"
        async with tenant.http() as http, other.http() as others:
            async with http.stream("GET", path(job_id)) as first, http.stream("GET", f"{log}?follow=true"):
                lines = first.aiter_lines()
                assert (await anext(lines)).startswith("id: ")
                for refused in (path(job_id), f"{log}?follow=true"):
                    answer = await http.get(refused)
                    assert answer.status_code == 429
                    error = answer.json()["error"]
                    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
                    assert "2 streams open" in error["message"]
                    assert answer.headers["retry-after"] == "10"
                # What ends by itself is no stream, and what is refused is none either.
                assert (await http.get(log)).status_code == 200
                assert (await http.get(f"{log}?follow=true&x=y")).status_code == 429
                assert (await http.get(path("ftjob-unknown"))).status_code == 404
                async with others.stream("GET", path(theirs)) as answer:
                    assert answer.status_code == 200
            await tenant.client.fine_tuning.jobs.cancel(job_id)
            await asyncio.sleep(1)  # for the server to see that they left
            for _ in range(3):
                assert (await http.get(path(job_id))).text.endswith("data: [DONE]\n\n")
    assert list(serving) == []


async def test_a_client_that_goes_away_leaves_nothing_running(site: Site) -> None:
    """A server that still told somebody of a job would not end."""
    serving = serve(site.settings())
    served = next(serving)
    async with tenant_of(served) as tenant:
        job_id = await running_job(tenant, told=1)
        async with tenant.http() as http:
            for _ in range(3):
                async with http.stream("GET", path(job_id)) as answer:
                    assert (await anext(answer.aiter_lines())).startswith("id: ")
    await asyncio.to_thread(lambda: list(serving))
