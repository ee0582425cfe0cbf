"""Files where the wire does not reach: names, and what happens to objects."""

from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.resources import Resources
from app.schemas.files import ExpiresAfter, FileCreate, Purpose
from app.services import files
from app.storage.base import ObjectMissing
from tests import factories


@pytest.mark.parametrize(
    ("filename", "label"),
    [
        ("train.jsonl", "train.jsonl"),
        ("TRAIN.JSONL", "TRAIN.JSONL"),
        ("upload", "upload"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\a.jsonl", "a.jsonl"),
        ("a\u2028b\x7f\x00.jsonl", "ab.jsonl"),
        (" spaced .jsonl ", "spaced .jsonl"),
        ("x" * 249 + ".jsonl", "x" * 249 + ".jsonl"),
    ],
)
def test_a_name_is_kept_as_a_label(filename: str, label: str) -> None:
    assert files.check_name(filename, purpose="fine-tune") == label


@pytest.mark.parametrize("filename", ["", " ", "/", "a/", "..", "\0", "x" * 250 + ".jsonl", "a.csv", "a.json"])
def test_names_that_are_refused(filename: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        files.check_name(filename, purpose="fine-tune")
    assert refused.value.param == "file"


async def test_what_is_not_jsonl_is_not_stored(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    file = BytesIO(b"not json\n")
    with pytest.raises(InvalidRequest, match="Expected file to have JSONL format"):
        await files.store(resources.storage, principal, file, purpose="fine-tune", max_line_bytes=1024)
    assert await factories.objects(resources) == set()
    file_id, stored = await files.store(resources.storage, principal, file, purpose="user_data", max_line_bytes=1024)
    assert (stored.key, stored.bytes) == (f"projects/{principal.project_id}/files/{file_id}", 9)


async def test_a_file_can_be_told_to_expire(resources: Resources, tmp_path: Path) -> None:
    principal, _ = await factories.project(resources)
    stored = await factories.stored(resources, "files/x", b"x")
    body = FileCreate(purpose="batch", expires_after=ExpiresAfter(anchor="created_at", seconds=7200))
    async with resources.write() as session:
        file = await files.create(session, principal, file_id="file-x", stored=stored, filename="x", body=body)
    assert file.expires_at is not None
    assert (file.expires_at - file.created_at).total_seconds() == 7200


@pytest.mark.parametrize(
    ("purpose", "days"), [("batch", 30), ("fine-tune", None), ("user_data", None), ("evals", None)]
)
async def test_only_files_of_batches_expire_by_themselves(
    resources: Resources, purpose: Purpose, days: int | None
) -> None:
    principal, _ = await factories.project(resources)
    stored = await factories.stored(resources, "files/x", b"x")
    async with resources.write() as session:
        file = await files.create(
            session, principal, file_id="file-x", stored=stored, filename="x", body=FileCreate(purpose=purpose)
        )
    assert file.expires_at == (None if days is None else file.created_at + timedelta(days=days))


async def test_an_object_goes_only_with_the_last_row_that_names_it(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    job = await factories.job(resources, principal)
    first = await factories.file(resources, principal, content=b"shared", storage_key="jobs/shared")
    second = await factories.file(resources, principal, content=b"shared", storage_key="jobs/shared")
    at_step = await factories.file(resources, principal, content=b"adapter", storage_key="jobs/step")
    await factories.checkpoint(resources, job, step=1, adapter_key="jobs/step")

    await _delete(resources, principal, first.id)
    assert await _exists(resources, "jobs/shared")
    await _delete(resources, principal, second.id)
    assert not await _exists(resources, "jobs/shared")
    await _delete(resources, principal, at_step.id)
    assert await _exists(resources, "jobs/step")


async def test_a_deletion_that_fails_deletes_no_object(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    file = await factories.file(resources, principal)

    async def delete_and_fail() -> None:
        async with resources.write() as session:
            await files.delete(session, principal, file_id=file.id)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await delete_and_fail()
    assert await _exists(resources, file.storage_key)
    async with resources.read() as session:
        assert (await files.get(session, principal, file_id=file.id)).id == file.id


async def _delete(resources: Resources, principal: factories.Principal, file_id: str) -> None:
    async with resources.write() as session:
        await files.delete(session, principal, file_id=file_id)


async def _exists(resources: Resources, key: str) -> bool:
    try:
        async for _ in resources.storage.read(key):
            return True
    except ObjectMissing:
        return False
    return True
