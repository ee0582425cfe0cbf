"""Sweeping storage: what belongs to nothing goes, and nothing else."""

import asyncio
import os
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app.auth import Principal
from app.db.models import File, Job, JobStatus, Upload, UploadPart, UploadStatus
from app.db.queries import scoped
from app.errors import NotFound
from app.ids import new_id, utc_now
from app.resources import Resources
from app.schemas.uploads import UploadCreate
from app.services import files, uploads
from app.storage.keys import job_object, upload_part
from tests import factories
from tests.servers.s3 import MotoServer, open_storage
from worker import tidying

NOW = timedelta(seconds=-1)
ROOT = "projects/proj_a"
DAY = timedelta(days=1)


async def test_what_a_row_names_is_kept(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    file = await factories.file(resources, principal)
    job, model = await factories.succeeded_job(resources, principal)
    checkpoint = await factories.checkpoint(resources, job, step=3)
    assert checkpoint.state_key is not None
    await factories.stored(resources, checkpoint.state_key, b"state")
    await factories.log_segment(resources, job, fence=1, number=0, text=b"log")
    named = await factories.objects(resources)
    assert {file.storage_key, model.adapter_key, checkpoint.adapter_key, checkpoint.state_key} < named

    for key in (
        f"{ROOT}/files/file-none",
        f"{ROOT}/jobs/ftjob-none/1/adapter.zip",
        f"{ROOT}/imports/import-x/adapter.zip",
        "trials/0123456789abcdef",
    ):
        await factories.stored(resources, key, b"orphan")
    await factories.stored(
        resources, job_object(job.project_id, job.id, 7, "checkpoints/9/adapter.zip"), b"of a lost lease"
    )

    assert await tidying.remove_orphans(resources, older_than=NOW) == 5
    assert await factories.objects(resources) == named
    assert await tidying.remove_orphans(resources, older_than=NOW) == 0


async def test_what_others_keep_in_the_bucket_is_not_touched(resources: Resources, moto_server: MotoServer) -> None:
    bucket = moto_server.new_bucket()
    storage, client = open_storage(moto_server, bucket), moto_server.client()
    foreign = {
        "projects/",
        "projects/notes.txt",
        f"{ROOT}/uploads/",  # as the consoles of S3 mark a folder
        f"{ROOT}/uploads/My file.jpg",
        f"{ROOT}/uploads/holiday.jpg",
        f"{ROOT}/uploads/upload_a/holiday.jpg",
        f"{ROOT}/files/.keep",
        f"{ROOT}/files/file-a.jsonl",
        f"{ROOT}/files/archive/file-a",
        f"{ROOT}/imports/import-a/notes.txt",
        f"{ROOT}/jobs/ftjob-a/latest/adapter.zip",
        f"{ROOT}/jobs/ftjob-a/1/",
        f"{ROOT}/jobs/ftjob-a/1/bébé.zip",
        "bases/model.safetensors",
        "trials/abc",
        "elsewhere/file-a",
    }
    for key in foreign | {f"{ROOT}/uploads/upload_a/part_b"}:
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    for key in (f"{ROOT}/uploads/My film.mp4", f"{ROOT}/uploads/upload_a/part_c"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    assert await tidying.remove_orphans(replace(resources, storage=storage), older_than=NOW) == 1
    assert await storage.remove_unfinished(older_than=NOW) == 1
    assert set(moto_server.keys(bucket)) == foreign
    assert len(moto_server.unfinished(bucket)) == 1
    client.close()
    await storage.close()


async def test_what_may_yet_get_its_row_is_kept(resources: Resources) -> None:
    await factories.stored(resources, f"{ROOT}/files/file-new", b"x")
    assert await tidying.remove_orphans(resources, older_than=DAY) == 0
    assert await factories.objects(resources) == {f"{ROOT}/files/file-new"}


@pytest.mark.parametrize(
    ("owner", "fence", "kept"), [("worker-a/0", 4, True), ("worker-a/0", 5, False), (None, 4, False)]
)
async def test_what_a_running_job_has_put_is_kept(
    resources: Resources, owner: str | None, fence: int, kept: bool
) -> None:
    principal, _ = await factories.project(resources)
    job = await factories.job(resources, principal, status=JobStatus.RUNNING, lease_owner=owner, fence=fence)
    key = job_object(job.project_id, job.id, 4, "checkpoints/3/adapter.zip")
    await factories.stored(resources, key, b"x")
    await tidying.remove_orphans(resources, older_than=NOW)
    assert (key in await factories.objects(resources)) == kept


async def test_encoded_data_and_the_adapter_that_a_job_begins_from_are_kept(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    keys = [
        f"{ROOT}/jobs/ftjob-a/1/training.tokens",
        f"{ROOT}/jobs/ftjob-a/1/validation.tokens",
        f"{ROOT}/imports/import-a/adapter.zip",
    ]
    for key in keys:
        await factories.stored(resources, key, b"x")
    await factories.job(
        resources,
        principal,
        id="ftjob-a",
        dataset={
            part: {"tokens": {"key": f"{ROOT}/jobs/ftjob-a/1/{part}.tokens", "sha256": "0"}}
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
        initial_adapter={
            "model": "ft:y",
            "key": f"{ROOT}/imports/import-b/adapter.zip",
            "sha256": "0",
            "lora": factories.LORA,
        },
    )
    await factories.stored(resources, f"{ROOT}/imports/import-b/adapter.zip", b"x")
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


async def _upload(resources: Resources, principal: Principal, *, parts: int) -> Upload:
    body = UploadCreate(bytes=parts * 4, filename="a", mime_type="txt", purpose="user_data")
    async with resources.write() as session:
        upload = await uploads.create(session, principal, body=body, max_bytes=1000)
    for _ in range(parts):
        part_id = new_id("part_")
        stored = await factories.stored(resources, upload_part(principal.project_id, upload.id, part_id), b"part")
        async with resources.write() as session:
            await uploads.add_part(session, principal, upload_id=upload.id, part_id=part_id, stored=stored)
    return upload


async def _rows(resources: Resources, principal: Principal, kind: type[Upload] | type[UploadPart]) -> list[Any]:
    async with resources.read() as session:
        return list(await session.scalars(scoped(kind, principal)))


async def test_parts_of_a_pending_upload_are_kept(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    upload = await _upload(resources, principal, parts=3)
    held = await factories.objects(resources)
    await factories.stored(
        resources, upload_part(principal.project_id, upload.id, "part_orphan"), b"of a request that died"
    )
    assert await tidying.remove_orphans(resources, older_than=NOW) == 1
    await tidying.remove_expired(resources)
    assert await factories.objects(resources) == held
    assert len(await _rows(resources, principal, UploadPart)) == 3


@pytest.mark.parametrize("late", [timedelta(minutes=59), timedelta(minutes=61)])
async def test_uploads_that_nobody_completed_are_ended(resources: Resources, late: timedelta) -> None:
    """An hour after they expired: a completion that began in time may take as long."""
    principal, _ = await factories.project(resources)
    upload = await _upload(resources, principal, parts=2)
    async with resources.write() as session:
        row = await uploads.get(session, principal, upload_id=upload.id)
        row.expires_at = utc_now() - late
    await tidying.remove_expired(resources)
    (row,) = await _rows(resources, principal, Upload)
    assert uploads.status_of(row) == UploadStatus.EXPIRED
    is_over = late > timedelta(hours=1)
    assert row.status == (UploadStatus.EXPIRED if is_over else UploadStatus.PENDING)
    assert len(await factories.objects(resources)) == (0 if is_over else 2)


async def test_parts_of_uploads_that_ended_go_by_the_hundred(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    long_ago, lately = [await _upload(resources, principal, parts=number) for number in (130, 1)]
    for upload, since in ((long_ago, timedelta(days=31)), (lately, timedelta())):
        async with resources.write() as session:
            await uploads.cancel(session, principal, upload_id=upload.id)
            (await uploads.get(session, principal, upload_id=upload.id)).ended_at = utc_now() - since
    await asyncio.gather(tidying.remove_expired(resources), tidying.remove_expired(resources))
    assert await factories.objects(resources) == set()
    assert await _rows(resources, principal, UploadPart) == []
    (row,) = await _rows(resources, principal, Upload)
    assert (row.id, row.num_parts, row.received_bytes) == (lately.id, 0, 0)


async def test_files_go_when_their_time_has_come(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    kept = await factories.file(resources, principal)
    later = await _expiring(resources, principal, timedelta(hours=1))
    for _ in range(105):
        await _expiring(resources, principal, timedelta(seconds=-1))
    await tidying.remove_expired(resources)
    assert await factories.objects(resources) == {kept.storage_key, later.storage_key}
    async with resources.read() as session:
        assert {file.id for file in await session.scalars(scoped(File, principal))} == {kept.id, later.id}


@pytest.mark.parametrize("part", ["training_file_id", "validation_file_id"])
@pytest.mark.parametrize("status", list(JobStatus))
async def test_what_an_accepted_job_has_still_to_read_is_kept(
    resources: Resources, status: JobStatus, part: str
) -> None:
    """Deleted or expired, nobody sees the file any more; only a job that is not validated yet needs it."""
    principal, _ = await factories.project(resources)
    expired = await _expiring(resources, principal, timedelta(seconds=-1))
    deleted = await factories.file(resources, principal)
    jobs = [await factories.job(resources, principal, status=status, **{part: file.id}) for file in (expired, deleted)]
    async with resources.write() as session:
        await files.delete(session, principal, file_id=deleted.id)
    await tidying.remove_expired(resources)
    await tidying.remove_orphans(resources, older_than=NOW)
    is_awaited = status == JobStatus.VALIDATING_FILES
    keys = {expired.storage_key, deleted.storage_key} if is_awaited else set[str]()
    assert await factories.objects(resources) == keys
    for file in (expired, deleted):
        async with resources.read() as session:
            with pytest.raises(NotFound):
                await files.get(session, principal, file_id=file.id)

    for job in jobs:
        async with resources.write() as session:
            row = (await session.scalars(scoped(Job, principal).where(Job.id == job.id))).one()
            row.status = JobStatus.QUEUED
    await tidying.remove_expired(resources)
    assert await factories.objects(resources) == set()


async def _expiring(resources: Resources, principal: Principal, after: timedelta) -> File:
    file = await factories.file(resources, principal)
    async with resources.write() as session:
        (await files.get(session, principal, file_id=file.id)).expires_at = utc_now() + after
    return file


async def test_parts_may_be_forgotten_after_their_upload(resources: Resources) -> None:
    """Two sweeps at once: one has read the parts when the other drops the upload."""
    principal, _ = await factories.project(resources)
    upload = await _upload(resources, principal, parts=1)
    parts = await _rows(resources, principal, UploadPart)
    async with resources.write() as session:
        await uploads.cancel(session, principal, upload_id=upload.id)
        (await uploads.get(session, principal, upload_id=upload.id)).ended_at = utc_now() - timedelta(days=31)
    await tidying.remove_expired(resources)
    assert await _rows(resources, principal, Upload) == []
    async with resources.write() as session:
        await uploads.forget_parts(session, parts)
