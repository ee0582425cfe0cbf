"""Whatever comes in, a clear refusal in OpenAI's envelope goes out, and never a 5xx."""

import asyncio
import json
from typing import Any

import pytest

from tests import factories
from tests.conftest import Served, Tenant

_DEEP = "[" * 900 + "]" * 900

# Changes to a valid body of POST /v1/fine_tuning/jobs, and the parameter that the answer must name.
_JOBS: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 7}, "model"),
    ({"model": "nothing"}, "model"),
    ({"model": "a\0b"}, "model"),
    ({"model": "x" * 5000}, "model"),
    ({"training_file": None}, "training_file"),
    ({"training_file": "file-unknown"}, "training_file"),
    ({"training_file": "../../etc/passwd"}, "training_file"),
    ({"training_file": ["a"]}, "training_file"),
    ({"validation_file": "file-unknown"}, "validation_file"),
    ({"validation_file": True}, "validation_file"),
    ({"suffix": ""}, "suffix"),
    ({"suffix": "x" * 65}, "suffix"),
    ({"suffix": "a\0"}, "suffix"),
    ({"suffix": "\ud800"}, "suffix"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**31}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "7"}, "seed"),
    ({"seed": 7.5}, "seed"),
    ({"seed": True}, "seed"),
    ({"metadata": {f"k{i}": "v" for i in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 64),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"metadata": {"k": None}}, "metadata.k"),
    ({"metadata": {"k": "\0"}}, "metadata.k"),
    ({"metadata": {"k": "\udfff"}}, "metadata.k"),
    ({"metadata": "x"}, "metadata"),
    ({"metadata": json.loads(_DEEP)}, "metadata"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations[0]"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "a\0b"}}]}, "integrations[0].wandb.project"),
    ({"integrations": [{"type": "mlflow", "mlflow": {"project": "p"}}]}, "integrations[0].type"),
    ({"integrations": [{"type": "mlflow", "wandb": {"project": "p"}}]}, "integrations[0].type"),
    ({"integrations": [{"wandb": {"project": "p"}}]}, "integrations[0].type"),
    ({"integrations": "wandb"}, "integrations"),
    ({"method": {"type": "dpo"}, "hyperparameters": {"n_epochs": 1}}, "hyperparameters"),
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": 3}}}, "method.dpo.hyperparameters"),
    *(
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": bad}}}}, "method.dpo.hyperparameters.beta")
        for bad in (0, -0.1, 2.01, float("nan"), "0.1", True, [])
    ),
    ({"method": {"type": "reinforcement"}}, "method.type"),
    ({"method": {"type": "kto"}}, "method.type"),
    ({"method": {}}, "method.type"),
    ({"method": "supervised"}, "method"),
    ({"method": {"type": "supervised", "supervised": {"hyperparameters": 3}}}, "method.supervised.hyperparameters"),
    ({"hyperparameters": []}, "hyperparameters"),
    *(
        ({"hyperparameters": {"n_epochs": bad}}, "hyperparameters.n_epochs")
        for bad in (0, -1, 51, 10**9, 2.5, 51.0, 1e300)
    ),
    *(({"hyperparameters": {"n_epochs": bad}}, "hyperparameters.n_epochs") for bad in ("auto ", "3", True, [], {})),
    *(({"hyperparameters": {"batch_size": bad}}, "hyperparameters.batch_size") for bad in (0, 257, True, "AUTO")),
    *(
        ({"hyperparameters": {"learning_rate_multiplier": bad}}, "hyperparameters.learning_rate_multiplier")
        for bad in (0, -0.1, float("nan"), float("inf"), -float("inf"), "inf", "1", True, 10**400)
    ),
    (
        {
            "hyperparameters": {"n_epochs": 1, "batch_size": 4},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        },
        "hyperparameters",
    ),
]


async def test_job_fields(tenant: Tenant, subtests: pytest.Subtests) -> None:
    training = await factories.file(tenant.resources, tenant.principal)
    headers = {"Content-Type": "application/json"}
    async with tenant.http() as http:
        for change, param in _JOBS:
            body = {"model": factories.BASE_MODEL, "training_file": training.id, **change}
            body = {name: value for name, value in body.items() if value is not None}
            with subtests.test(str(change)[:60]):
                answer = await http.post("/v1/fine_tuning/jobs", content=json.dumps(body), headers=headers)
                error = _refused(answer, 400)
                assert error["param"] == param
                assert len(error["message"]) < 400
        assert (await http.get("/v1/fine_tuning/jobs")).json()["data"] == []


_BODIES = [
    (b"", "application/json"),
    (b"null", "application/json"),
    (b"[]", "application/json"),
    (b'"text"', "application/json"),
    (b"{} trailing", "application/json"),
    (b'{"model": "\xff\xfe"}', "application/json"),
    (b'{"model": ' + b"9" * 5000 + b"}", "application/json"),
    (_DEEP.encode(), "application/json"),
    (b"[" * 100_000, "application/json"),
    (b'{"model": "a", "training_file": "b"}', "text/plain"),
    (b'{"model": "a", "training_file": "b"}', "nonsense"),
    (b'{"model": "a", "training_file": "b"}', ""),
    (b"\x1f\x8b\x08\x00", "application/json"),
]


async def test_job_bodies(tenant: Tenant, subtests: pytest.Subtests) -> None:
    async with tenant.http() as http:
        for body, content_type in _BODIES:
            with subtests.test(f"{body[:20]} as {content_type}"):
                headers = {"Content-Type": content_type}
                _refused(await http.post("/v1/fine_tuning/jobs", content=body, headers=headers), 400)


async def test_a_job_body_of_50_mib_is_refused(tenant: Tenant) -> None:
    async with tenant.http() as http:
        answer = await http.post("/v1/fine_tuning/jobs", content=b" " * 50 * 1024**2)
        assert _refused(answer, 413)["message"] == "The request's body is too large."

        async def chunked():
            for _ in range(50):
                yield b" " * 1024**2

        headers = {"Content-Type": "application/json"}
        _refused(await http.post("/v1/fine_tuning/jobs", content=chunked(), headers=headers), 413)


async def test_a_file_of_another_purpose_cannot_be_trained_on(tenant: Tenant) -> None:
    results = await factories.file(tenant.resources, tenant.principal, purpose="fine-tune-results")
    async with tenant.http() as http:
        body = {"model": factories.BASE_MODEL, "training_file": results.id}
        error = _refused(await http.post("/v1/fine_tuning/jobs", json=body), 400)
    assert (error["param"], error["code"]) == ("training_file", "invalid_file_purpose")


def _part(name: str, value: bytes, filename: str | None = None, extra: str = "") -> bytes:
    end = "" if filename is None else f'; filename="{filename}"'
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{end}\r\n{extra}\r\n'.encode() + value + b"\r\n"


_PURPOSE = _part("purpose", b"fine-tune")
_FILE = _part("file", factories.jsonl(), "a.jsonl")
_END = b"--B--\r\n"
_ANY = object()

# Bodies of POST /v1/files with the boundary "B", and the parameter that the answer must name.
_FORMS: dict[str, tuple[bytes, object]] = {
    "no file": (_PURPOSE + _END, "file"),
    "no purpose": (_FILE + _END, "purpose"),
    "unknown purpose": (_part("purpose", b"nonsense") + _FILE + _END, "purpose"),
    "results are not uploaded": (_part("purpose", b"fine-tune-results") + _FILE + _END, "purpose"),
    "empty file": (_PURPOSE + _part("file", b"", "a.jsonl") + _END, "file"),
    "empty filename": (_PURPOSE + _part("file", b"{}", "") + _END, "file"),
    "filename of dots": (_PURPOSE + _part("file", b"{}", "..") + _END, "file"),
    "filename too long": (_PURPOSE + _part("file", b"{}", "x" * 300) + _END, "file"),
    "file as a field": (_PURPOSE + _part("file", b"{}") + _END, "file"),
    "purpose as a file": (_part("purpose", b"fine-tune", "p") + _FILE + _END, "purpose"),
    "two files": (_PURPOSE + _FILE + _FILE + _END, "file"),
    "two purposes": (_PURPOSE + _PURPOSE + _FILE + _END, "purpose"),
    "unknown field": (_PURPOSE + _part("more", b"x") + _FILE + _END, "more"),
    "no closing boundary": (_PURPOSE + _FILE, None),
    "cut short": (_PURPOSE + _FILE[:-20], None),
    "another boundary": (_PURPOSE.replace(b"--B", b"--C") + _END, None),
    "2000 fields": (_part("purpose", b"x") * 2000 + _END, _ANY),
    "purpose of 2 MiB": (_part("purpose", b"x" * 2 * 1024**2) + _FILE + _END, "purpose"),
    "part header of 1 MiB": (_part("file", b"x", "a.jsonl", extra="X: " + "y" * 1024**2 + "\r\n") + _END, None),
    "100 part headers": (_part("file", b"x", "a.jsonl", extra="X: y\r\n" * 100) + _END, None),
    "not a form": (b'{"purpose": "fine-tune"}', None),
    "nothing": (b"", None),
    "no name": (b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + _END, ""),
    "no disposition": (b"--B\r\nX: y\r\n\r\nx\r\n" + _END, ""),
    "csv": (_PURPOSE + _part("file", b"a,b\n", "a.csv") + _END, "file"),
    "not JSON": (_PURPOSE + _part("file", b"a,b\n", "a.jsonl") + _END, None),
    "array": (_PURPOSE + _part("file", b"[1]\n", "a.jsonl") + _END, None),
    "UTF-16": (_PURPOSE + _part("file", '{"a": 1}\n'.encode("utf-16"), "a.jsonl") + _END, None),
    "expiry too soon": (
        _PURPOSE + _part("expires_after[anchor]", b"created_at") + _part("expires_after[seconds]", b"5") + _FILE + _END,
        "expires_after.seconds",
    ),
    "expiry not a number": (
        _PURPOSE
        + _part("expires_after[anchor]", b"created_at")
        + _part("expires_after[seconds]", b"1e4")
        + _FILE
        + _END,
        "expires_after.seconds",
    ),
    "expiry without anchor": (
        _PURPOSE + _part("expires_after[seconds]", b"3600") + _FILE + _END,
        "expires_after.anchor",
    ),
}


async def test_upload_forms(tenant: Tenant, served: Served, subtests: pytest.Subtests) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    async with tenant.http() as http:
        for name, (body, param) in _FORMS.items():
            with subtests.test(name):
                error = _refused(await http.post("/v1/files", content=body, headers=headers), 400)
                assert param is _ANY or error["param"] == param
        assert (await http.get("/v1/files")).json()["data"] == []
    assert list((served.settings.data / "uploads").iterdir()) == []


async def test_the_refusal_of_what_is_not_jsonl_reads_as_openais(tenant: Tenant) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    body = _PURPOSE + _part("file", b'"prompt"\n', "a.jsonl") + _END
    async with tenant.http() as http:
        error = _refused(await http.post("/v1/files", content=body, headers=headers), 400)
    sentence = "Expected file to have JSONL format, where every line is a JSON dictionary. Line 1 is not a dictionary"
    assert error["message"].startswith(sentence)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, None)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "B" * 5000,
        "application/json",
        "application/x-www-form-urlencoded",
        "",
    ],
)
async def test_upload_content_types(tenant: Tenant, content_type: str) -> None:
    async with tenant.http() as http:
        headers = {"Content-Type": content_type}
        _refused(await http.post("/v1/files", content=_PURPOSE + _FILE + _END, headers=headers), 400)


@pytest.mark.parametrize("disposition", ['filename="\xff\xfe.jsonl"', "filename*=UTF-8''%e2%98%83.jsonl"])
async def test_odd_filenames_are_no_reason_to_fail(tenant: Tenant, disposition: str) -> None:
    head = f'--B\r\nContent-Disposition: form-data; name="file"; {disposition}\r\n\r\n'.encode("latin-1")
    headers = {"Content-Type": "multipart/form-data; boundary=B; charset=utf-7"}
    async with tenant.http() as http:
        answer = await http.post("/v1/files", content=_PURPOSE + head + b"{}\r\n" + _END, headers=headers)
    assert answer.status_code in (200, 400)
    assert answer.status_code == 200 or _refused(answer, 400)


async def test_a_file_over_the_limit_is_refused(tenant: Tenant, served: Served) -> None:
    body = _part("purpose", b"user_data") + _part("file", b"x" * 5 * 1024**2, "big.bin") + _END
    headers = {"Content-Type": "multipart/form-data; boundary=B"}

    async def chunked():
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    async with tenant.http() as http:
        declared = await http.post("/v1/files", content=body, headers=headers)
        streamed = await http.post("/v1/files", content=chunked(), headers=headers)
    for answer in (declared, streamed):
        assert _refused(answer, 413)["param"] == "file"
    assert list((served.settings.data / "uploads").iterdir()) == []


_QUERIES = [
    *(f"limit={bad}" for bad in ("abc", "-1", "101", "1e3", "1" + "0" * 20, "%D9%A5", "1_0", "%205", "5.0")),
    "limit=5&limit=6",
    "after=%00",
    "after=ftjob-unknown",
    "after=" + "x" * 5000,
    "after=a&after=b",
    "metadata=x",
    "metadata=null&metadata[a]=b",
    "metadata[a]=b&metadata[a]=c",
    "metadata[%00]=b",
    "&".join(f"metadata[k{i}]=v" for i in range(17)),
]


async def test_list_parameters(tenant: Tenant, subtests: pytest.Subtests) -> None:
    async with tenant.http() as http:
        for query in _QUERIES:
            with subtests.test(query[:40]):
                error = _refused(await http.get(f"/v1/fine_tuning/jobs?{query}"), 400)
                assert error["param"] == query.partition("=")[0] or error["param"].startswith("metadata")


async def test_a_switch_is_true_or_false(tenant: Tenant) -> None:
    job = await factories.job(tenant.resources, tenant.principal)
    async with tenant.http() as http:
        for query in ("events?stream=x", "logs?follow=x"):
            error = _refused(await http.get(f"/v1/fine_tuning/jobs/{job.id}/{query}"), 400)
            name = query.partition("?")[2].removesuffix("=x")
            assert (error["param"], error["message"]) == (name, f"Invalid value for '{name}': expected true or false.")


_IDS = ["..", "%2e%2e", "%00", "x" * 5000, "a%20b", "%ED%A0%80", "%F0%9F%A6%8A", "';%20drop%20table%20jobs", "a%0Ab"]
_ROUTES = [
    ("GET", "/v1/files/{}"),
    ("DELETE", "/v1/files/{}"),
    ("GET", "/v1/files/{}/content"),
    ("POST", "/v1/uploads/{}/parts"),
    ("POST", "/v1/uploads/{}/cancel"),
    ("GET", "/v1/fine_tuning/jobs/{}"),
    ("POST", "/v1/fine_tuning/jobs/{}/cancel"),
    ("POST", "/v1/fine_tuning/jobs/{}/pause"),
    ("POST", "/v1/fine_tuning/jobs/{}/resume"),
    ("GET", "/v1/fine_tuning/jobs/{}/events?stream=true"),
    ("GET", "/v1/fine_tuning/jobs/{}/events"),
    ("GET", "/v1/fine_tuning/jobs/{}/checkpoints"),
    ("GET", "/v1/fine_tuning/jobs/{}/logs"),
    ("GET", "/v1/fine_tuning/jobs/{}/adapter"),
    ("GET", "/v1/models/{}"),
    ("DELETE", "/v1/models/{}"),
]


async def test_ids_in_paths(tenant: Tenant, subtests: pytest.Subtests) -> None:
    for bad in _IDS:
        for method, template in _ROUTES:
            with subtests.test(f"{method} {template.format(bad[:20])}"):
                status, body = await _raw_request(tenant, method, template.format(bad))
                assert status == 404
                assert set(body["error"]) == {"message", "type", "param", "code"}
                assert len(body["error"]["message"]) < 400


_PATHS = [
    ("GET", "/", 404),
    ("GET", "/v1", 404),
    ("GET", "/v1/unknown", 404),
    ("GET", "/v1/files/", 404),
    ("GET", "/v1/fine_tuning/jobs/", 404),
    ("GET", "/v1/models/", 404),
    ("PUT", "/v1/files", 405),
    ("GET", "/v1/uploads", 405),
    ("GET", "/v1/uploads/upload_x", 404),
    ("DELETE", "/v1/fine_tuning/jobs", 405),
    ("PATCH", "/v1/models/x", 405),
    ("POST", "/healthz", 405),
]


async def test_unknown_paths_and_methods(tenant: Tenant, subtests: pytest.Subtests) -> None:
    async with tenant.http() as http:
        for method, path, status in _PATHS:
            with subtests.test(f"{method} {path}"):
                answer = await http.request(method, path)
                _refused(answer, status)
                assert ("allow" in answer.headers) == (status == 405)


def _refused(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"].startswith("req_")
    return error


async def _raw_request(tenant: Tenant, method: str, path: str) -> tuple[int, Any]:
    """A request that no client library has tidied up."""
    host, port = tenant.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {tenant.key}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head_bytes, _, body = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split()[1]), json.loads(body)
