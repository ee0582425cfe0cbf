"""A job's log, whole and followed."""

import asyncio

import pytest

from app.api import logs as logs_api
from app.db.models import Job, JobStatus
from app.db.queries import scoped
from app.services import job_states
from tests import factories
from tests.conftest import Tenant


async def test_segments_are_joined_in_the_order_they_were_written(tenant: Tenant) -> None:
    job = await factories.job(tenant.resources, tenant.principal)
    snowman = "☃".encode()
    for fence, number, text in ((2, 0, snowman[2:] + b" second run\n"), (1, 10, b"three " + snowman[:2])):
        await factories.log_segment(tenant.resources, job, fence=fence, number=number, text=text)
    for number, text in ((2, b"two\n"), (0, b"one\n")):
        await factories.log_segment(tenant.resources, job, number=number, text=text)
    async with tenant.http() as http:
        answer = await http.get(f"/v1/fine_tuning/jobs/{job.id}/logs")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "one\ntwo\nthree ☃ second run\n"


async def test_a_job_without_a_log_has_an_empty_one(tenant: Tenant, other_tenant: Tenant) -> None:
    job = await factories.job(tenant.resources, tenant.principal)
    async with tenant.http() as http:
        answer = await http.get(f"/v1/fine_tuning/jobs/{job.id}/logs")
        unknown = await http.get("/v1/fine_tuning/jobs/ftjob-unknown/logs?follow=true")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "fine_tune_not_found")
    async with other_tenant.http() as http:
        assert (await http.get(f"/v1/fine_tuning/jobs/{job.id}/logs")).status_code == 404


@pytest.mark.timeout(30)
async def test_following_goes_on_until_the_job_has_ended(tenant: Tenant) -> None:
    job = await factories.job(tenant.resources, tenant.principal, status=JobStatus.RUNNING)
    await factories.log_segment(tenant.resources, job, number=0, text=b"begun\n")
    async with tenant.http() as http, http.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/logs?follow=true") as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "begun"
        await factories.log_segment(tenant.resources, job, number=1, text=b"under way\n")
        assert await anext(lines) == "under way"
        await factories.log_segment(tenant.resources, job, number=2, text=b"done\n")
        async with tenant.resources.write() as session:
            row = (await session.scalars(scoped(Job, tenant.principal).where(Job.id == job.id))).one()
            job_states.move(session, row, JobStatus.SUCCEEDED, message="done", now=factories.utc_now())
        assert [line async for line in lines] == ["done"]


@pytest.mark.timeout(30)
async def test_a_follower_that_leaves_is_let_go(tenant: Tenant, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="app.access")
    job = await factories.job(tenant.resources, tenant.principal, status=JobStatus.RUNNING)
    path = f"/v1/fine_tuning/jobs/{job.id}/logs"
    async with tenant.http() as http, http.stream("GET", f"{path}?follow=true") as answer:
        assert answer.status_code == 200
    for _ in range(100):
        if any(path in record.getMessage() for record in caplog.records):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the request never ended")


@pytest.mark.timeout(30)
async def test_following_ends_when_the_key_is_revoked(other_tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_api, "_KEY_SECONDS", 0.1)
    monkeypatch.setattr(logs_api, "_POLL_SECONDS", 0.02)
    job = await factories.job(other_tenant.resources, other_tenant.principal, status=JobStatus.RUNNING)
    await factories.log_segment(other_tenant.resources, job, number=0, text=b"begun\n")
    path = f"/v1/fine_tuning/jobs/{job.id}/logs?follow=true"
    async with other_tenant.http() as http, http.stream("GET", path) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "begun"
        await factories.revoke(other_tenant.resources, other_tenant.key)
        assert [line async for line in lines] == []
