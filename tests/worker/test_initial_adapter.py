"""The adapter that a job continues from: brought to the worker whole, and let go of when the job has ended."""

import io
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Job, JobStatus
from app.db.queries import of_project
from app.resources import Resources
from app.services import job_states, leases
from tests import factories
from tests.worker.holding import held_job
from worker import checkpoints, guarded
from worker.contract.errors import Blame, TrainError

KEY = "imports/import-1/adapter.zip"


async def stored_adapter(resources: Resources) -> dict[str, Any]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as bundle:
        bundle.writestr("adapter_config.json", "{}")
    held = await factories.stored(resources, KEY, packed.getvalue())
    return {"model": "ft:hone-tiny:test::abc", "key": KEY, "sha256": held.sha256, "lora": factories.LORA}


async def job_with(resources: Resources, initial_adapter: dict[str, Any] | None) -> Job:
    principal, _ = await factories.project(resources)
    return await factories.job(resources, principal, initial_adapter=initial_adapter)


async def test_it_is_unpacked_for_the_trainer(resources: Resources, tmp_path: Path) -> None:
    job = await job_with(resources, await stored_adapter(resources))
    directory = await checkpoints.initial_adapter(resources, job, tmp_path)
    assert directory is not None
    assert [path.name for path in directory.iterdir()] == ["adapter_config.json"]
    assert await checkpoints.initial_adapter(resources, await job_with(resources, None), tmp_path) is None


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"key": "imports/missing/adapter.zip"}])
async def test_a_damaged_one_fails_the_job(resources: Resources, tmp_path: Path, change: dict[str, str]) -> None:
    job = await job_with(resources, await stored_adapter(resources) | change)
    with pytest.raises(TrainError) as failed:
        await checkpoints.initial_adapter(resources, job, tmp_path)
    assert (failed.value.code, failed.value.param, failed.value.blame) == ("checksum_mismatch", "model", Blame.USER)


async def test_the_end_of_the_last_job_lets_go_of_it(resources: Resources) -> None:
    lease = await held_job(resources, initial_adapter=await stored_adapter(resources))

    async def touch(_session: AsyncSession, job: Job, _now: datetime) -> None:
        job.current_step = 1

    async def fail(session: AsyncSession, job: Job, now: datetime) -> None:
        job_states.move(session, job, JobStatus.FAILED, message="over", now=now)
        leases.release(session, job)

    await guarded.write(resources, lease, touch)
    assert KEY in await factories.objects(resources)
    await guarded.write(resources, lease, fail)
    assert KEY not in await factories.objects(resources)


async def test_an_adapter_that_a_model_still_has_is_kept(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    _, model = await factories.succeeded_job(resources, principal)
    initial = {"model": model.id, "key": model.adapter_key, "sha256": model.adapter_sha256, "lora": factories.LORA}
    job = await factories.job(resources, principal, initial_adapter=initial)
    async with resources.write() as session:
        claimed = await leases.claim(session, owner="worker-test/0", status=JobStatus.QUEUED, ttl_seconds=60)
    assert claimed is not None

    async def crash(session: AsyncSession, held: Job, now: datetime) -> None:
        leases.crashed(session, held, reason="it died", max_crashes=1, now=now)

    await guarded.write(resources, claimed[0], crash)
    async with resources.read() as session:
        ended = await session.scalar(of_project(Job, principal.project_id).where(Job.id == job.id))
    assert ended is not None
    assert ended.status == JobStatus.FAILED
    assert model.adapter_key in await factories.objects(resources)
