"""The 74 groups of bad input, each with its expected status, code and parameter.

Whatever comes in: no 5xx, no stack, none of our insides, no more than 200 characters of what was sent, and where it
was refused, no row and no object more than before. `groups/` holds the tables. Group 19, slow senders, is timed:
`tests/api/test_system.py`.
"""

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, literal, select, union_all

from app.db.audit_models import AuditEntry
from app.db.metadata import ALL_TABLES
from app.resources import Resources
from tests import factories
from tests.backends import Backends
from tests.conftest import Served, Tenant, serve, tenant_of
from tests.hostile.cases import ANY, Answer, Case, send
from tests.hostile.groups import data, jobs, lists, requests, uploads
from tests.unit.chat_bases import write_base
from worker.contract.prepare import DataLimits, PrepareRequest
from worker.prepare import run_prepare

GROUPS = 74
MOST_ECHOED = 200
TIMED = 19
TABLE: list[Case] = [*requests.CASES, *uploads.CASES, *jobs.CASES, *lists.CASES]
_INSIDES = re.compile(
    r'Traceback|File "|\.py\b|site-packages|pydantic|sqlalchemy|asyncpg|sqlite|starlette|fastapi|0x[0-9a-f]{8}',
    re.IGNORECASE,
)


def test_no_group_is_left_out() -> None:
    found = {case.group for case in (*TABLE, *data.CASES)} | {TIMED}
    assert found == set(range(1, GROUPS + 1))


@pytest.fixture(scope="module")
def hostile_served(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = backends.new(tmp_path_factory.mktemp("hostile") / "data")
    yield from serve(made.settings(max_file_bytes=4 * 1024**2, max_line_bytes=data.MAX_LINE_BYTES))


@pytest.mark.parametrize("group", sorted({case.group for case in TABLE}))
async def test_group(group: int, hostile_served: Served, subtests: pytest.Subtests) -> None:
    async with tenant_of(hostile_served) as tenant, tenant_of(hostile_served) as other:
        place = await _place(tenant, other)
        before = await census(tenant.resources)
        for case in TABLE:
            if case.group != group:
                continue
            with subtests.test(case.name):
                request = case.request(place)
                answer = await send(hostile_served.url, request)
                after = await census(tenant.resources)
                check(case, request, answer)
                if answer.status >= 400:
                    assert after == before
                before = after
    assert not [*_left_behind(hostile_served)]


@pytest.mark.parametrize("group", sorted({case.group for case in data.CASES}))
async def test_data_group(group: int, hostile_served: Served, tmp_path: Path, subtests: pytest.Subtests) -> None:
    base = write_base(tmp_path / "base", "chatml")
    async with tenant_of(hostile_served) as tenant:
        for number, case in enumerate(case for case in data.CASES if case.group == group):
            with subtests.test(case.name):
                before = await census(tenant.resources)
                body = uploads.PURPOSE + uploads.part("file", case.content, "a.jsonl") + uploads.END
                headers = {"Content-Type": "multipart/form-data; boundary=B"}
                async with tenant.http() as http:
                    answer = await http.post("/v1/files", content=body, headers=headers)
                if case.at_upload is not None:
                    error = Answer(answer.status_code, answer.headers, answer.content).error()
                    assert (answer.status_code, error["code"], error["param"]) == (400, None, None)
                    assert case.at_upload in error["message"]
                    check_text(error["message"], case.content)
                    assert await census(tenant.resources) == before
                    continue
                assert answer.status_code == 200, answer.text
                changed = {key for key, n in (await census(tenant.resources)).items() if n != before.get(key)}
                assert changed == {"files", "objects", "usage_records"}  # the last counts the day's uploads
                _check_verdict(case, base, tmp_path / str(number))
    assert not [*_left_behind(hostile_served)]


def check(case: Case, request: bytes, answer: Answer) -> None:
    assert answer.status in case.statuses, answer.text[:500]
    check_text(answer.text, request)
    if answer.status < 400 or case.is_servers_own:
        return
    error = answer.error()
    assert error["type"] == "invalid_request_error"
    assert case.code is ANY or error["code"] == case.code, error
    assert case.param is ANY or error["param"] == case.param, error
    assert answer.headers["x-request-id"].startswith("req_")
    assert ("allow" in answer.headers) == (answer.status == 405)


def check_text(text: str, sent: bytes) -> None:
    """Nothing of our insides, and little of what was sent."""
    assert not _INSIDES.search(text), text[:500]
    for form in (sent.decode("utf-8", "replace"), sent.decode("latin-1")):
        for start in range(max(0, len(text) - MOST_ECHOED)):
            assert text[start : start + MOST_ECHOED + 1] not in form, text[:1000]


async def census(resources: Resources) -> dict[str, int]:
    """How many rows each table has, and how many objects there are.

    But for the audit log, which tells of refused keys, a little later.
    """
    counts = [
        select(literal(table.name), func.count()).select_from(table)
        for table in ALL_TABLES.sorted_tables
        if table.name != AuditEntry.__tablename__
    ]
    async with resources.read() as session:
        found = {row[0]: row[1] for row in await session.execute(union_all(*counts))}
    return found | {"objects": len(await factories.objects(resources))}


def _left_behind(served: Served) -> Iterator[Path]:
    uploads_directory = served.settings.data / "uploads"
    return uploads_directory.iterdir() if uploads_directory.exists() else iter(())


async def _place(tenant: Tenant, other: Tenant) -> Mapping[str, str]:
    """A project that has one of everything that the cases name."""
    training = await factories.file(tenant.resources, tenant.principal)
    results = await factories.file(tenant.resources, tenant.principal, purpose="fine-tune-results")
    gone = await factories.file(tenant.resources, tenant.principal)
    await tenant.client.files.delete(gone.id)
    _, revoked = await factories.project(tenant.resources)
    await factories.revoke(tenant.resources, revoked)
    mine = await factories.job(tenant.resources, tenant.principal)
    done, _ = await factories.succeeded_job(tenant.resources, tenant.principal)
    theirs = await factories.job(other.resources, other.principal)
    async with tenant.http() as http:
        body = {"model": factories.BASE_MODEL, "training_file": training.id}
        used = await http.post("/v1/fine_tuning/jobs", json=body, headers={"Idempotency-Key": "used-before"})
        assert used.status_code == 200
    return {
        "KEY": tenant.key,
        "REVOKED": revoked,
        "MODEL": factories.BASE_MODEL,
        "FILE": training.id,
        "RESULT_FILE": results.id,
        "DELETED_FILE": gone.id,
        "OTHERS_FILE": (await factories.file(other.resources, other.principal)).id,
        "JOB": mine.id,
        "DONE_JOB": done.id,
        "OTHERS_JOB": theirs.id,
        "USED_IDEMPOTENCY_KEY": "used-before",
    }


def _check_verdict(case: data.DataCase, base: Path, directory: Path) -> None:
    """What a job that names the file ends with."""
    directory.mkdir()
    (directory / "training.jsonl").write_bytes(case.content)
    values: dict[str, Any] = {
        "base_directory": str(base),
        "training_file": str(directory / "training.jsonl"),
        "output_directory": str(directory),
        "max_sequence_tokens": 512,
        "rendering_date": datetime.date(2026, 1, 2),
        "data": DataLimits(max_rows=data.MAX_ROWS, max_line_bytes=data.MAX_LINE_BYTES),
    }
    report = run_prepare(PrepareRequest(**values))
    if case.verdict is None:
        assert report.error is None
        return
    code, words = case.verdict
    assert report.error is not None
    assert (report.error.code, report.error.param) == (code, "training_file")
    assert words in report.error.message
    check_text(json.dumps(report.error.message), case.content)
    if report.training.num_errors:
        assert not (directory / "training.safetensors").exists()
