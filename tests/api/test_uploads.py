"""/v1/uploads through the official client, and past it."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types import Upload as WireUpload

from app.db.models import File, Upload, UploadPart
from app.db.queries import scoped
from app.services.uploads import MAX_PART_BYTES
from tests import factories
from tests.api import test_node_client as node
from tests.conftest import Served, Tenant
from worker import tidying

ROWS = factories.jsonl(40)
MD5 = hashlib.md5(ROWS, usedforsecurity=False).hexdigest()


async def begin(tenant: Tenant, size: int = len(ROWS), **changes: Any) -> WireUpload:
    body: dict[str, Any] = {"bytes": size, "filename": "train.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    return await tenant.client.uploads.create(**(body | changes))


async def add(tenant: Tenant, upload: WireUpload, content: bytes) -> str:
    return (await tenant.client.uploads.parts.create(upload.id, data=content)).id


async def row_of(tenant: Tenant, upload: WireUpload) -> Upload:
    async with tenant.resources.read() as session:
        return (await session.scalars(scoped(Upload, tenant.principal).where(Upload.id == upload.id))).one()


async def age(tenant: Tenant, upload: WireUpload, by: timedelta) -> None:
    """As if it had been created that much earlier."""
    async with tenant.resources.write() as session:
        row = (await session.scalars(scoped(Upload, tenant.principal).where(Upload.id == upload.id))).one()
        row.created_at, row.expires_at = row.created_at - by, row.expires_at - by


async def files_of(tenant: Tenant) -> list[File]:
    async with tenant.resources.read() as session:
        return list(await session.scalars(scoped(File, tenant.principal)))


async def test_the_helper_of_the_client_sends_bytes_and_files(tenant: Tenant, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(ROWS)
    send = tenant.client.uploads.upload_file_chunked
    from_path = await send(file=path, mime_type="txt", purpose="fine-tune", part_size=1000, md5=MD5)
    from_bytes = await send(
        file=ROWS, filename="b.jsonl", bytes=len(ROWS), mime_type="text/jsonl", purpose="fine-tune", md5=MD5.upper()
    )
    for upload in (from_path, from_bytes):
        assert (upload.status, upload.object, upload.bytes) == ("completed", "upload", len(ROWS))
        assert upload.expires_at == upload.created_at + 3600
        assert upload.file is not None
        assert (upload.file.bytes, upload.file.purpose, upload.file.status) == (len(ROWS), "fine-tune", "processed")
        assert upload.file.expires_at is None
        assert await tenant.client.files.retrieve(upload.file.id) == upload.file
        assert (await tenant.client.files.content(upload.file.id)).content == ROWS
    assert from_path.file is not None
    assert from_path.file.filename == "train.jsonl"
    job = await tenant.client.fine_tuning.jobs.create(model=factories.BASE_MODEL, training_file=from_path.file.id)
    assert job.training_file == from_path.file.id


async def test_the_client_that_blocks_is_served_too(tenant: Tenant, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(ROWS)

    def send() -> tuple[WireUpload, str]:
        with OpenAI(
            api_key=tenant.key, base_url=f"{tenant.url}/v1", max_retries=0, _strict_response_validation=True
        ) as client:
            made = client.uploads.upload_file_chunked(
                file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=700, md5=MD5
            )
            assert made.file is not None
            assert client.files.wait_for_processing(made.file.id).status == "processed"
            dropped = client.uploads.create(bytes=3, filename="a", mime_type="txt", purpose="user_data")
            assert client.uploads.cancel(dropped.id).status == "cancelled"
            return made, client.files.content(made.file.id).text

    made, text = await asyncio.to_thread(send)
    assert (made.status, text.encode()) == ("completed", ROWS)


async def test_the_node_client_sends_parts(tenant: Tenant) -> None:
    await node.install()
    environment = {"OPENAI_BASE_URL": f"{tenant.url}/v1", "OPENAI_API_KEY": tenant.key}
    seen = json.loads(await node.run("node", "uploads.mjs", environment=environment))
    assert [file.id for file in await files_of(tenant)] == [seen["file"]]


async def test_parts_arrive_in_parallel_and_are_ordered_at_the_end(tenant: Tenant) -> None:
    pieces = [bytes([65 + number]) * (100 + number) for number in range(20)]
    content = b"".join(pieces)
    policy: Any = {"anchor": "created_at", "seconds": 7200}
    upload = await begin(tenant, len(content), purpose="user_data", filename="a.bin", expires_after=policy)
    assert (upload.status, upload.file, upload.purpose) == ("pending", None, "user_data")
    ids = dict(enumerate(await asyncio.gather(*(add(tenant, upload, piece) for piece in reversed(pieces)))))
    part = await tenant.client.uploads.parts.create(upload.id, data=b"one too many")
    assert (part.object, part.upload_id) == ("upload.part", upload.id)
    assert part.id.startswith("part_")
    assert (await row_of(tenant, upload)).num_parts == 21

    done = await tenant.client.uploads.complete(upload.id, part_ids=[ids[19 - number] for number in range(20)])
    assert done.file is not None
    assert done.file.expires_at == done.file.created_at + 7200
    assert (await tenant.client.files.content(done.file.id)).content == content


async def test_a_completed_upload_stays_so(tenant: Tenant) -> None:
    upload = await begin(tenant)
    part_id = await add(tenant, upload, ROWS)
    done = await tenant.client.uploads.complete(upload.id, part_ids=[part_id])
    assert await tenant.client.uploads.complete(upload.id, part_ids=[part_id]) == done
    with pytest.raises(BadRequestError, match="is completed; it cannot be cancelled"):
        await tenant.client.uploads.cancel(upload.id)
    with pytest.raises(BadRequestError, match="is completed; it can no longer take parts"):
        await add(tenant, upload, b"x")
    await tidying.remove_expired(tenant.resources)
    assert await tenant.client.uploads.complete(upload.id, part_ids=[part_id]) == done
    assert done.file is not None
    await tenant.client.files.delete(done.file.id)
    again = await tenant.client.uploads.complete(upload.id, part_ids=[part_id])
    assert (again.status, again.file) == ("completed", None)


async def test_a_cancelled_upload_stays_so(tenant: Tenant) -> None:
    upload = await begin(tenant)
    part_id = await add(tenant, upload, ROWS)
    cancelled = await tenant.client.uploads.cancel(upload.id)
    assert (cancelled.status, cancelled.file) == ("cancelled", None)
    assert await tenant.client.uploads.cancel(upload.id) == cancelled
    async with tenant.http() as http:  # as other clients send it
        bodies: list[dict[str, Any]] = [{}, {"json": {}}, {"headers": {"Content-Type": "application/json"}}]
        for body in bodies:
            assert (await http.post(f"/v1/uploads/{upload.id}/cancel", **body)).json() == cancelled.to_dict() | {
                "file": None
            }
    with pytest.raises(BadRequestError, match="is cancelled; it can no longer be completed"):
        await tenant.client.uploads.complete(upload.id, part_ids=[part_id])
    with pytest.raises(BadRequestError, match="is cancelled; it can no longer take parts"):
        await add(tenant, upload, b"x")
    assert await files_of(tenant) == []


async def test_an_upload_expires_after_an_hour(tenant: Tenant) -> None:
    upload = await begin(tenant)
    part_id = await add(tenant, upload, ROWS)
    await age(tenant, upload, timedelta(hours=1))
    with pytest.raises(BadRequestError, match="has expired; it can no longer take parts"):
        await add(tenant, upload, b"x")
    with pytest.raises(BadRequestError, match="has expired; it can no longer be completed"):
        await tenant.client.uploads.complete(upload.id, part_ids=[part_id])
    assert (await tenant.client.uploads.cancel(upload.id)).status == "expired"
    assert (await tenant.client.uploads.cancel(upload.id)).status == "expired"
    assert await files_of(tenant) == []


async def test_what_is_refused_can_be_put_right(tenant: Tenant, subtests: pytest.Subtests) -> None:
    upload, other = await begin(tenant), await begin(tenant)
    first, second = await add(tenant, upload, ROWS[:100]), await add(tenant, upload, ROWS[100:])
    foreign, wrong = await add(tenant, other, ROWS), await add(tenant, upload, b"x" * len(ROWS))
    refused: dict[str, tuple[dict[str, Any], str | None]] = {
        "unknown part": ({"part_ids": [first, "part_unknown"]}, "part_ids"),
        "hostile part": ({"part_ids": [first, "\0'; drop table files"]}, "part_ids"),
        "part of another upload": ({"part_ids": [foreign]}, "part_ids"),
        "part twice": ({"part_ids": [first, first]}, "part_ids"),
        "no parts": ({"part_ids": []}, "part_ids"),
        "too few bytes": ({"part_ids": [first]}, "part_ids"),
        "too many bytes": ({"part_ids": [first, second, wrong]}, "part_ids"),
        "other md5": ({"part_ids": [first, second], "md5": "0" * 32}, "md5"),
        "other order": ({"part_ids": [second, first], "md5": MD5}, "md5"),
        "no md5": ({"part_ids": [first, second], "md5": "abc"}, "md5"),
        "not JSONL": ({"part_ids": [wrong]}, None),
    }
    for name, (body, param) in refused.items():
        with subtests.test(name):
            with pytest.raises(BadRequestError) as error:
                await tenant.client.uploads.complete(upload.id, **body)
            assert error.value.param == param
            if name == "not JSONL":
                assert 'Line 1 is not a dictionary (HINT: line starts with: "xxx...").' in error.value.message
                assert error.value.message.find("Expected file to have JSONL format") >= 0
    assert await files_of(tenant) == []
    done = await tenant.client.uploads.complete(upload.id, part_ids=[first, second], md5=MD5)
    assert done.file is not None
    assert [file.id for file in await files_of(tenant)] == [done.file.id]


_BEGINNINGS: list[tuple[dict[str, Any], str]] = [
    *(({"bytes": bad}, "bytes") for bad in (-1, 8 * 1024**3 + 1, 2**70, 1.5, "7", True, None)),
    *(({"filename": bad}, "filename") for bad in ("", "..", "a.csv", "x" * 300 + ".jsonl", "a\0.jsonl", 7, None)),
    *(({"purpose": bad}, "purpose") for bad in ("fine-tune-results", "", None, 3)),
    *(({"mime_type": bad}, "mime_type") for bad in (None, 3, "a\0")),
    *(
        ({"expires_after": {"anchor": "created_at", "seconds": bad}}, "expires_after.seconds")
        for bad in (3599, 2592001, None)
    ),
    ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
    ({"expires_after": 3600}, "expires_after"),
]


async def test_beginnings_that_are_refused(tenant: Tenant, subtests: pytest.Subtests) -> None:
    for changes, param in _BEGINNINGS:
        with subtests.test(str(changes)[:60]):
            with pytest.raises(BadRequestError) as error:
                await begin(tenant, **changes)
            assert error.value.param == param
    async with tenant.http() as http:
        answer = await http.post("/v1/uploads", json={"bytes": 1, "filename": "a", "mime_type": "txt"})
    assert answer.json()["error"]["param"] == "purpose"
    assert (await begin(tenant, 8 * 1024**3)).bytes == 8 * 1024**3


async def test_uploads_of_another_project_do_not_exist(tenant: Tenant, other_tenant: Tenant) -> None:
    upload = await begin(tenant)
    part_id = await add(tenant, upload, ROWS)
    for upload_id in (upload.id, "upload_unknown", "a b", "x" * 3000):
        theirs = other_tenant.client.uploads
        for call in (
            theirs.cancel(upload_id),
            theirs.complete(upload_id, part_ids=[part_id]),
            theirs.parts.create(upload_id, data=b"x"),
        ):
            with pytest.raises(NotFoundError) as missing:
                await call
            assert missing.value.param == "upload_id"
    mine = await begin(other_tenant)
    with pytest.raises(BadRequestError, match="has no part"):
        await other_tenant.client.uploads.complete(mine.id, part_ids=[part_id])


def _part(name: str, content: bytes, more: str = "") -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


_END = b"--B--\r\n"
_FORMS: dict[str, tuple[bytes, str | None]] = {
    "no data": (_END, "data"),
    "empty": (_part("data", b"", '; filename="a"') + _END, "data"),
    "two parts": (_part("data", b"a") + _part("data", b"b") + _END, "data"),
    "another name": (_part("file", b"a", '; filename="a"') + _END, "file"),
    "more fields": (_part("data", b"a") + _part("purpose", b"fine-tune") + _END, "purpose"),
    "no name": (b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + _END, ""),
    "cut short": (_part("data", b"abc")[:-3], None),
    "not a form": (b'{"data": "x"}', None),
}


async def test_part_forms(tenant: Tenant, served: Served, subtests: pytest.Subtests) -> None:
    upload = await begin(tenant)
    path, headers = f"/v1/uploads/{upload.id}/parts", {"Content-Type": "multipart/form-data; boundary=B"}
    async with tenant.http() as http:
        for name, (body, param) in _FORMS.items():
            with subtests.test(name):
                answer = await http.post(path, content=body, headers=headers)
                assert answer.status_code == 400
                assert answer.json()["error"]["param"] == param
        assert (await http.post(path, json={"data": "x"})).status_code == 400
        # As curl sends a field, without a filename.
        assert (await http.post(path, content=_part("data", b"abc") + _END, headers=headers)).status_code == 200
    row = await row_of(tenant, upload)
    assert (row.num_parts, row.received_bytes) == (1, 3)
    assert list((served.settings.data / "uploads").iterdir()) == []


async def test_a_part_has_64_mib_at_most(tenant: Tenant, served: Served) -> None:
    upload = await begin(tenant, MAX_PART_BYTES, purpose="user_data", filename="a.bin")
    content = os.urandom(1 << 20) * 64
    path, headers = f"/v1/uploads/{upload.id}/parts", {"Content-Type": "multipart/form-data; boundary=B"}
    beginning, end = _part("data", b"", '; filename="a"')[:-2], b"\r\n" + _END

    async def body(spare: bytes) -> AsyncIterator[bytes]:
        for piece in (beginning, content, spare, end):
            yield piece

    async with tenant.http() as http:
        for more in (headers, headers | {"Content-Length": str(len(content) + (1 << 20))}):
            answer = await http.post(path, content=body(b"x" * ((1 << 20) - len(beginning) - len(end))), headers=more)
            assert answer.status_code == 413
            error = answer.json()["error"]
            assert (error["param"], error["type"]) == ("data", "invalid_request_error")
            assert str(MAX_PART_BYTES) in error["message"]
    assert list((served.settings.data / "uploads").iterdir()) == []
    assert (await row_of(tenant, upload)).num_parts == 0

    part_id = await add(tenant, upload, content)
    done = await tenant.client.uploads.complete(upload.id, part_ids=[part_id])
    assert done.file is not None
    assert done.file.bytes == MAX_PART_BYTES  # more than one request may bring: only parts have that limit


async def test_parts_beyond_what_was_announced_are_taken_up_to_a_measure(tenant: Tenant) -> None:
    upload = await begin(tenant, 10)
    await add(tenant, upload, b"x" * 100)
    async with tenant.resources.write() as session:
        row = (await session.scalars(scoped(Upload, tenant.principal).where(Upload.id == upload.id))).one()
        row.received_bytes += 16 * MAX_PART_BYTES
    with pytest.raises(BadRequestError, match="bytes already"):
        await add(tenant, upload, b"x")


async def test_a_part_that_is_damaged_in_storage_is_told(tenant: Tenant) -> None:
    upload = await begin(tenant)
    part_id = await add(tenant, upload, ROWS)
    async with tenant.resources.read() as session:
        part = (await session.scalars(scoped(UploadPart, tenant.principal))).one()
    await factories.stored(tenant.resources, part.storage_key, ROWS[:-1] + b" ")
    with pytest.raises(BadRequestError, match=f"{part_id} is not whole in storage; add it again"):
        await tenant.client.uploads.complete(upload.id, part_ids=[part_id])
    again = await add(tenant, upload, ROWS)
    assert (await tenant.client.uploads.complete(upload.id, part_ids=[again])).status == "completed"


@pytest.mark.parametrize("purpose", ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"])
async def test_every_purpose_becomes_a_file(tenant: Tenant, purpose: Any) -> None:
    upload = await tenant.client.uploads.upload_file_chunked(
        file=ROWS, filename="a.jsonl", bytes=len(ROWS), mime_type="anything", purpose=purpose
    )
    assert upload.purpose == purpose
    assert upload.file is not None
    assert upload.file.purpose == ("user_data" if purpose == "evals" else purpose)
    life = None if upload.file.expires_at is None else upload.file.expires_at - upload.file.created_at
    assert life == (30 * 86400 if purpose == "batch" else None)


async def test_of_two_completions_one_wins(tenant: Tenant) -> None:
    for _ in range(5):
        upload = await begin(tenant)
        part_id = await add(tenant, upload, ROWS)
        ends = await asyncio.gather(*(tenant.client.uploads.complete(upload.id, part_ids=[part_id]) for _ in range(4)))
        assert all(end == ends[0] for end in ends)
    assert len(await files_of(tenant)) == 5


async def test_of_completing_and_cancelling_one_wins(tenant: Tenant) -> None:
    completed = 0
    for number in range(12):
        upload = await begin(tenant)
        part_id = await add(tenant, upload, ROWS)
        calls = [tenant.client.uploads.complete(upload.id, part_ids=[part_id]), _later(tenant, upload, number * 0.003)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        won = [end for end in ends if not isinstance(end, BaseException)]
        lost = [end for end in ends if isinstance(end, BaseException)]
        assert (len(won), len(lost)) == (1, 1)
        assert isinstance(lost[0], BadRequestError)
        completed += won[0].status == "completed"
        assert (await row_of(tenant, upload)).status == won[0].status
        assert len(await files_of(tenant)) == completed
    await tidying.remove_expired(tenant.resources)
    ours = {file.storage_key for file in await files_of(tenant)}
    assert ours <= await factories.objects(tenant.resources)


async def test_of_a_part_and_cancelling_one_wins(tenant: Tenant) -> None:
    for number in range(12):
        upload = await begin(tenant)
        taken, cancelled = await asyncio.gather(
            tenant.client.uploads.parts.create(upload.id, data=ROWS),
            _later(tenant, upload, number * 0.003),
            return_exceptions=True,
        )
        assert isinstance(cancelled, WireUpload)
        assert cancelled.status == "cancelled"
        assert (await row_of(tenant, upload)).num_parts == (not isinstance(taken, BadRequestError))
    await tidying.remove_expired(tenant.resources)
    async with tenant.resources.read() as session:
        assert (await session.scalars(scoped(UploadPart, tenant.principal))).all() == []


async def _later(tenant: Tenant, upload: WireUpload, seconds: float) -> WireUpload:
    await asyncio.sleep(seconds)
    return await tenant.client.uploads.cancel(upload.id)


async def test_without_a_key_there_is_nothing(served: Served) -> None:
    async with AsyncOpenAI(api_key="sk-wrong-key-0123456", base_url=f"{served.url}/v1", max_retries=0) as client:
        calls = (
            client.uploads.create(bytes=1, filename="a", mime_type="txt", purpose="user_data"),
            client.uploads.parts.create("upload_x", data=b"x"),
            client.uploads.complete("upload_x", part_ids=["part_x"]),
            client.uploads.cancel("upload_x"),
        )
        for call in calls:
            with pytest.raises(APIStatusError) as refused:
                await call
            assert (refused.value.status_code, refused.value.code) == (401, "invalid_api_key")
