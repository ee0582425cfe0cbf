"""Uploads where requests do not reach: several processes, and those that die."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from io import BytesIO

import pytest

from app.api.uploads import complete_upload
from app.auth import Principal
from app.db.models import File, Upload, UploadStatus
from app.db.queries import scoped
from app.errors import InvalidRequest
from app.ids import new_id, utc_now
from app.resources import Resources
from app.schemas.uploads import UploadComplete, UploadCreate
from app.services import files, uploads
from app.storage.keys import upload_part, uploaded_file
from tests import factories
from worker import tidying

NOW = timedelta(seconds=-1)
CONTENT = b"first second"


async def begun(resources: Resources) -> tuple[Principal, Upload, list[str]]:
    """An upload with two parts."""
    principal, _ = await factories.project(resources)
    body = UploadCreate(bytes=len(CONTENT), filename="a.txt", mime_type="txt", purpose="user_data")
    async with resources.write() as session:
        upload = await uploads.create(session, principal, body=body, max_bytes=1000)
    part_ids = [new_id("part_"), new_id("part_")]
    for part_id, content in zip(part_ids, (CONTENT[:6], CONTENT[6:]), strict=True):
        stored = await factories.stored(resources, upload_part(principal.project_id, upload.id, part_id), content)
        async with resources.write() as session:
            await uploads.add_part(session, principal, upload_id=upload.id, part_id=part_id, stored=stored)
    return principal, upload, part_ids


async def assembled(resources: Resources, principal: Principal, upload: Upload, part_ids: list[str]):
    """What a process has done when it is about to record the file."""
    async with resources.read() as session:
        parts = await uploads.chosen(session, principal, upload, part_ids=part_ids)
    whole = BytesIO()
    await uploads.assemble(resources.storage, parts, whole, md5=None)
    assert whole.getvalue() == CONTENT
    return await files.store(resources.storage, principal, whole, purpose=upload.purpose, max_line_bytes=1024)


async def complete(resources: Resources, principal: Principal, upload: Upload, part_ids: list[str]) -> str | None:
    file_id, stored = await assembled(resources, principal, upload, part_ids)
    async with resources.write() as session:
        done = await uploads.complete(session, principal, upload_id=upload.id, file_id=file_id, stored=stored)
    return done.file_id


async def file_keys(resources: Resources, principal: Principal) -> list[str]:
    async with resources.read() as session:
        return [file.storage_key for file in await session.scalars(scoped(File, principal))]


async def test_processes_that_complete_at_once_make_one_file(resources: Resources) -> None:
    principal, upload, part_ids = await begun(resources)
    made = await asyncio.gather(*(complete(resources, principal, upload, part_ids) for _ in range(6)))
    assert len(set(made)) == 1
    assert await file_keys(resources, principal) == [uploaded_file(principal.project_id, made[0] or "")]
    await tidying.remove_expired(resources)
    assert await factories.objects(resources) == {
        uploaded_file(principal.project_id, made[0] or "")
    }  # those of the losers are gone as well


async def test_a_completion_that_is_overtaken_gets_the_same_answer(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process completes the upload, and a sweep removes its parts, while this one reads them."""
    principal, upload, part_ids = await begun(resources)
    read = resources.storage.read
    overtaken_by: list[str | None] = []

    async def late(key: str, **places: int) -> AsyncIterator[bytes]:
        monkeypatch.setattr(resources.storage, "read", read)
        overtaken_by.append(await complete(resources, principal, upload, part_ids))
        await tidying.remove_expired(resources)
        async for chunk in read(key, **places):
            yield chunk

    monkeypatch.setattr(resources.storage, "read", late)
    answer = await complete_upload(upload.id, UploadComplete(part_ids=part_ids), principal, resources)
    assert answer.status == "completed"
    assert answer.file is not None
    assert overtaken_by == [answer.file.id]
    assert await factories.objects(resources) == {uploaded_file(principal.project_id, answer.file.id)}


async def test_a_completion_that_dies_twice_can_be_made_a_third_time(resources: Resources) -> None:
    principal, upload, part_ids = await begun(resources)
    for _ in range(2):
        await assembled(resources, principal, upload, part_ids)  # and here its process dies
    assert await tidying.remove_orphans(resources, older_than=NOW) == 2
    await tidying.remove_expired(resources)
    file_id = await complete(resources, principal, upload, part_ids)
    assert await file_keys(resources, principal) == [uploaded_file(principal.project_id, file_id or "")]


async def test_a_completion_that_began_in_time_may_end_late(resources: Resources) -> None:
    principal, upload, part_ids = await begun(resources)
    file_id, stored = await assembled(resources, principal, upload, part_ids)
    async with resources.write() as session:
        (await uploads.get(session, principal, upload_id=upload.id)).expires_at = utc_now() - timedelta(minutes=5)
    await tidying.remove_expired(resources)
    async with resources.write() as session:
        done = await uploads.complete(session, principal, upload_id=upload.id, file_id=file_id, stored=stored)
    assert (done.status, done.file_id) == (UploadStatus.COMPLETED, file_id)


async def test_a_completion_that_comes_after_a_cancellation_is_refused(resources: Resources) -> None:
    principal, upload, part_ids = await begun(resources)
    file_id, stored = await assembled(resources, principal, upload, part_ids)
    async with resources.write() as session:
        await uploads.cancel(session, principal, upload_id=upload.id)
    with pytest.raises(InvalidRequest, match="is cancelled"):
        async with resources.write() as session:
            await uploads.complete(session, principal, upload_id=upload.id, file_id=file_id, stored=stored)
    assert await file_keys(resources, principal) == []


async def test_an_upload_takes_so_many_parts(resources: Resources) -> None:
    principal, upload, _ = await begun(resources)
    async with resources.write() as session:
        (await uploads.get(session, principal, upload_id=upload.id)).num_parts = 10_000
    async with resources.read() as session:
        with pytest.raises(InvalidRequest, match="10000 parts"):
            await uploads.require_room(session, principal, upload_id=upload.id)
