"""Sweeping storage: what belongs to nothing goes, and nothing else."""

import os
import time
from datetime import timedelta

import pytest

from app.db.models import JobStatus
from app.resources import Resources
from app.storage.keys import job_object
from tests import factories
from worker import tidying

NOW = timedelta(seconds=-1)
DAY = timedelta(days=1)


async def test_what_a_row_names_is_kept(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    file = await factories.file(resources, principal)
    job, model = await factories.succeeded_job(resources, principal)
    checkpoint = await factories.checkpoint(resources, job, step=3)
    await factories.stored(resources, checkpoint.state_key, b"state")
    await factories.log_segment(resources, job, fence=1, number=0, text=b"log")
    named = await factories.objects(resources)
    assert {file.storage_key, model.adapter_key, checkpoint.adapter_key, checkpoint.state_key} < named

    for key in ("files/file-none", "jobs/ftjob-none/1/adapter.zip", "imports/import-x/adapter.zip", "trials/abc"):
        await factories.stored(resources, key, b"orphan")
    await factories.stored(resources, job_object(job.id, 7, "checkpoints/9/adapter.zip"), b"of a lost lease")

    assert await tidying.remove_orphans(resources, older_than=NOW) == 5
    assert await factories.objects(resources) == named
    assert await tidying.remove_orphans(resources, older_than=NOW) == 0


async def test_what_may_yet_get_its_row_is_kept(resources: Resources) -> None:
    await factories.stored(resources, "files/file-new", b"x")
    assert await tidying.remove_orphans(resources, older_than=DAY) == 0
    assert await factories.objects(resources) == {"files/file-new"}


@pytest.mark.parametrize(
    ("owner", "fence", "kept"), [("worker-a/0", 4, True), ("worker-a/0", 5, False), (None, 4, False)]
)
async def test_what_a_running_job_has_put_is_kept(
    resources: Resources, owner: str | None, fence: int, kept: bool
) -> None:
    principal, _ = await factories.project(resources)
    job = await factories.job(resources, principal, status=JobStatus.RUNNING, lease_owner=owner, fence=fence)
    key = job_object(job.id, 4, "checkpoints/3/adapter.zip")
    await factories.stored(resources, key, b"x")
    await tidying.remove_orphans(resources, older_than=NOW)
    assert (key in await factories.objects(resources)) == kept


async def test_encoded_data_and_the_adapter_that_a_job_begins_from_are_kept(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    keys = ["jobs/ftjob-a/1/training.tokens", "jobs/ftjob-a/1/validation.tokens", "imports/import-a/adapter.zip"]
    for key in keys:
        await factories.stored(resources, key, b"x")
    await factories.job(
        resources,
        principal,
        id="ftjob-a",
        dataset={
            part: {"tokens": {"key": f"jobs/ftjob-a/1/{part}.tokens", "sha256": "0"}}
            for part in ("training", "validation")
        },
        initial_adapter={"model": "ft:x", "key": keys[2], "sha256": "0", "lora": factories.LORA},
    )
    assert await tidying.remove_orphans(resources, older_than=NOW) == 0

    # Of a job that has ended, the adapter that it began from is no longer its own.
    await factories.job(
        resources,
        principal,
        status=JobStatus.FAILED,
        initial_adapter={"model": "ft:y", "key": "imports/import-b/adapter.zip", "sha256": "0", "lora": factories.LORA},
    )
    await factories.stored(resources, "imports/import-b/adapter.zip", b"x")
    assert await tidying.remove_orphans(resources, older_than=NOW) == 1
    assert await factories.objects(resources) == set(keys)


async def test_what_a_killed_import_has_left_is_cleared_away_when_it_is_old(resources: Resources) -> None:
    old, new = (resources.settings.data / f"import-{age}" for age in ("old", "new"))
    for path in (old, new):
        path.mkdir()
    long_ago = time.time() - 2 * DAY.total_seconds()
    os.utime(old, (long_ago, long_ago))
    await tidying.once(resources, older_than=DAY)
    assert [path.exists() for path in (old, new)] == [False, True]
