"""/v1/files through the official client."""

import asyncio
import base64
import hashlib
import io
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from app.db.models import File
from app.db.queries import scoped
from app.ids import utc_now
from app.storage.keys import uploaded_file
from tests import factories
from tests.conftest import Served, Tenant
from worker import tidying


async def test_a_file_comes_back_as_it_was_sent(tenant: Tenant, served: Served) -> None:
    content = factories.jsonl(500)
    sent = await tenant.client.files.create(
        file=("my data.jsonl", content),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert sent.id.startswith("file-")
    assert (sent.bytes, sent.filename, sent.purpose) == (len(content), "my data.jsonl", "fine-tune")
    assert (sent.status, sent.status_details) == ("processed", None)
    assert sent.expires_at == sent.created_at + 3600
    assert await tenant.client.files.retrieve(sent.id) == sent
    assert (await tenant.client.files.wait_for_processing(sent.id)).id == sent.id

    answer = await tenant.client.files.with_raw_response.content(sent.id)
    assert answer.content == content
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="my data.jsonl"'
    assert answer.headers["content-length"] == str(len(content))
    digest = hashlib.sha256(content)
    assert answer.headers["etag"] == f'"{digest.hexdigest()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert list((served.settings.data / "uploads").iterdir()) == []


async def test_clients_that_send_bytes_without_a_name_are_served(tenant: Tenant) -> None:
    sent = await tenant.client.files.create(file=io.BytesIO(factories.jsonl()), purpose="fine-tune")
    assert sent.filename == "upload"
    assert (await tenant.client.files.create(file=b"\x00\xff any bytes", purpose="user_data")).bytes == 12


@pytest.mark.parametrize(
    ("range_header", "expected", "content_range"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
        ("bytes=4-999", b"456789", "bytes 4-9/10"),
        ("bytes=0-1,3-4", b"0123456789", None),
        ("bytes=5-2", b"0123456789", None),
        ("lines=1-2", b"0123456789", None),
    ],
)
async def test_a_range_can_be_downloaded(
    tenant: Tenant, range_header: str, expected: bytes, content_range: str | None
) -> None:
    file = await factories.file(tenant.resources, tenant.principal, content=b"0123456789")
    headers = {"Range": range_header}
    answer = await tenant.client.files.with_raw_response.content(file.id, extra_headers=headers)
    assert answer.content == expected
    assert answer.status_code == (206 if content_range else 200)
    assert answer.headers.get("content-range") == content_range


async def test_a_range_outside_of_the_file_is_refused(tenant: Tenant) -> None:
    file = await factories.file(tenant.resources, tenant.principal, content=b"0123456789")
    async with tenant.http() as http:
        for header in ("bytes=10-", "bytes=-0"):
            answer = await http.get(f"/v1/files/{file.id}/content", headers={"Range": header})
            assert answer.status_code == 416
            assert answer.headers["content-range"] == "bytes */10"
            assert answer.json()["error"]["type"] == "invalid_request_error"
        changed = {"Range": "bytes=1-2", "If-Range": '"another"'}
        assert (await http.get(f"/v1/files/{file.id}/content", headers=changed)).status_code == 200


async def test_files_are_listed_by_cursor_purpose_and_order(tenant: Tenant) -> None:
    made = [(await factories.file(tenant.resources, tenant.principal)).id for _ in range(5)]
    result = await factories.file(tenant.resources, tenant.principal, purpose="fine-tune-results")
    newest_first = [result.id, *made[::-1]]

    everything = await tenant.client.files.list()
    assert [file.id for file in everything.data] == newest_first
    raw = (await tenant.client.files.with_raw_response.list(limit=2)).http_response.json()
    assert (raw["first_id"], raw["last_id"], raw["has_more"]) == (newest_first[0], newest_first[1], True)
    assert [file.id async for file in tenant.client.files.list(limit=2)] == newest_first
    assert [file.id async for file in tenant.client.files.list(limit=2, order="asc")] == newest_first[::-1]
    assert [file.id async for file in tenant.client.files.list(purpose="fine-tune-results")] == [result.id]
    assert (await tenant.client.files.list(purpose="nothing")).data == []
    with pytest.raises(BadRequestError) as refused:
        await tenant.client.files.list(after="file-unknown")
    assert refused.value.param == "after"


@pytest.mark.parametrize("purpose", ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"])
async def test_every_purpose_is_taken_and_found_again(tenant: Tenant, purpose: Any) -> None:
    sent = await tenant.client.files.create(file=("a.jsonl", factories.jsonl()), purpose=purpose)
    other = await tenant.client.files.create(file=("b.jsonl", factories.jsonl()), purpose="assistants")
    # Strict clients know no files for evals.
    assert sent.purpose == ("user_data" if purpose == "evals" else purpose)
    assert sent.expires_at == (sent.created_at + 30 * 86400 if purpose == "batch" else None)
    for shown in {purpose, sent.purpose}:
        found = [file.id async for file in tenant.client.files.list(purpose=shown)]
        assert found == ([other.id, sent.id] if purpose == "assistants" else [sent.id])
    if purpose != "fine-tune":
        with pytest.raises(BadRequestError, match="expected 'fine-tune'") as refused:
            await tenant.client.fine_tuning.jobs.create(model=factories.BASE_MODEL, training_file=sent.id)
        assert refused.value.code == "invalid_file_purpose"


async def test_a_file_whose_time_has_come_is_gone_as_if_it_were_deleted(tenant: Tenant) -> None:
    policy: Any = {"anchor": "created_at", "seconds": 3600}
    file = await tenant.client.files.create(
        file=("a.jsonl", factories.jsonl()), purpose="fine-tune", expires_after=policy
    )
    async with tenant.resources.write() as session:
        row = (await session.scalars(scoped(File, tenant.principal).where(File.id == file.id))).one()
        row.expires_at = utc_now()
    for call in (tenant.client.files.retrieve, tenant.client.files.content, tenant.client.files.delete):
        with pytest.raises(NotFoundError, match=f"No such File object: {file.id}"):
            await call(file.id)
    assert (await tenant.client.files.list()).data == []
    with pytest.raises(BadRequestError):
        await tenant.client.files.list(after=file.id)
    with pytest.raises(BadRequestError) as refused:
        await tenant.client.fine_tuning.jobs.create(model=factories.BASE_MODEL, training_file=file.id)
    assert (refused.value.code, refused.value.param) == ("file_not_found", "training_file")


async def test_a_file_may_be_deleted_as_soon_as_a_job_was_created_with_it(tenant: Tenant) -> None:
    file = await tenant.client.files.create(file=("a.jsonl", factories.jsonl()), purpose="fine-tune")
    job = await tenant.client.fine_tuning.jobs.create(model=factories.BASE_MODEL, training_file=file.id)
    assert (await tenant.client.files.delete(file.id)).deleted is True
    for call in (tenant.client.files.retrieve, tenant.client.files.delete):
        with pytest.raises(NotFoundError):
            await call(file.id)
    assert (await tenant.client.files.list()).data == []
    assert uploaded_file(tenant.principal.project_id, file.id) in await factories.objects(tenant.resources)
    await tenant.client.fine_tuning.jobs.cancel(job.id)
    await tidying.remove_expired(tenant.resources)
    assert uploaded_file(tenant.principal.project_id, file.id) not in await factories.objects(tenant.resources)


async def test_the_client_that_blocks_is_served_too(tenant: Tenant) -> None:
    job, _ = await factories.succeeded_job(tenant.resources, tenant.principal)

    def drive() -> None:
        with OpenAI(
            api_key=tenant.key, base_url=f"{tenant.url}/v1", max_retries=0, _strict_response_validation=True
        ) as client:
            sent = client.files.create(file=("a.jsonl", factories.jsonl()), purpose="fine-tune")
            assert client.files.wait_for_processing(sent.id) == client.files.retrieve(sent.id) == sent
            assert [file.id for file in client.files.list(purpose="fine-tune", order="asc", limit=1)] == [sent.id]
            assert client.files.content(job.result_file_ids[0]).text.startswith("step,train_loss,train_accuracy")
            with pytest.warns(DeprecationWarning, match="content"):
                assert client.files.retrieve_content(sent.id).encode() == factories.jsonl()
            assert client.files.delete(sent.id).deleted
            with pytest.raises(NotFoundError):
                client.files.delete(sent.id)

    await asyncio.to_thread(drive)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=10001", "limit"),
        ("limit=ten", "limit"),
        ("order=ascending", "order"),
        ("order=asc&order=desc", "order"),
        ("after=file-unknown", "after"),
    ],
)
async def test_lists_that_are_refused(tenant: Tenant, query: str, param: str) -> None:
    async with tenant.http() as http:
        answer = await http.get(f"/v1/files?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_a_list_as_curl_asks_for_it(tenant: Tenant) -> None:
    made = [(await factories.file(tenant.resources, tenant.principal)).id for _ in range(3)]
    async with tenant.http() as http:
        first = (await http.get("/v1/files?purpose=fine-tune&limit=2&order=asc")).json()
        rest = (await http.get(f"/v1/files?purpose=fine-tune&limit=10000&order=asc&after={first['last_id']}")).json()
        nothing = (await http.get("/v1/files?purpose=vision&unknown=ignored")).json()
    assert [file["id"] for file in first["data"] + rest["data"]] == made
    assert (first["has_more"], rest["has_more"], rest["first_id"]) == (True, False, made[2])
    assert (nothing["object"], nothing["data"], nothing["has_more"]) == ("list", [], False)


async def test_a_table_of_figures_in_base64_is_a_file_like_any_other(tenant: Tenant) -> None:
    text = base64.b64encode(b"step,train_loss\n1,0.50000\n")  # as a worker with that setting writes it
    file = await factories.file(tenant.resources, tenant.principal, content=text, purpose="fine-tune-results")
    answer = await tenant.client.files.with_raw_response.content(file.id)
    assert base64.b64decode(answer.content).startswith(b"step,train_loss")
    assert (answer.headers["content-length"], file.bytes) == (str(len(text)), len(text))
    part = await tenant.client.files.with_raw_response.content(file.id, extra_headers={"Range": "bytes=4-7"})
    assert (part.content, part.status_code) == (text[4:8], 206)


async def test_a_deleted_file_is_gone_from_the_list_and_from_storage(tenant: Tenant) -> None:
    file = await tenant.client.files.create(file=("a.jsonl", factories.jsonl()), purpose="fine-tune")
    assert uploaded_file(tenant.principal.project_id, file.id) in await factories.objects(tenant.resources)
    deleted = await tenant.client.files.delete(file.id)
    assert deleted.to_dict() == {"id": file.id, "object": "file", "deleted": True}
    assert uploaded_file(tenant.principal.project_id, file.id) not in await factories.objects(tenant.resources)
    assert (await tenant.client.files.list()).data == []
    for call in (tenant.client.files.retrieve, tenant.client.files.content, tenant.client.files.delete):
        with pytest.raises(NotFoundError):
            await call(file.id)


async def test_an_archive_lives_as_long_as_a_result_file_or_a_model_names_it(tenant: Tenant) -> None:
    job, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    await tenant.client.files.delete(job.result_file_ids[1])
    path = f"/v1/fine_tuning/jobs/{job.id}/adapter"
    async with tenant.http() as http:
        assert (await http.get(path)).content == b"the adapter" * 1000
    await tenant.client.models.delete(model.id)
    async with tenant.http() as http:
        assert (await http.get(path)).status_code == 404
    assert model.adapter_key not in await factories.objects(tenant.resources)


async def test_files_of_another_project_do_not_exist(tenant: Tenant, other_tenant: Tenant) -> None:
    file = await factories.file(tenant.resources, tenant.principal)
    theirs = other_tenant.client.files
    for call in (theirs.retrieve, theirs.content, theirs.delete):
        with pytest.raises(NotFoundError) as missing:
            await call(file.id)
        unknown = missing.value.message.replace(file.id, "file-unknown")
        with pytest.raises(NotFoundError) as other:
            await call("file-unknown")
        assert other.value.message == unknown
    assert (await theirs.list()).data == []


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd.jsonl", "passwd.jsonl"),
        ("C:\\data\\train.jsonl", "train.jsonl"),
        ("tra\tin.jsonl", "train.jsonl"),
        ("donnée ☃.jsonl", "donnée ☃.jsonl"),
    ],
)
async def test_a_filename_is_only_a_label(tenant: Tenant, sent: str, kept: str) -> None:
    boundary = "b0undary"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{sent}"\r\n\r\nx\r\n--{boundary}--\r\n'
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    async with tenant.http() as http:
        answer = await http.post("/v1/files", content=body.encode(), headers=headers)
        assert answer.json()["filename"] == kept
        content = await http.get(f"/v1/files/{answer.json()['id']}/content")
    assert content.content == b"x"
    assert content.headers["content-disposition"].isascii()
