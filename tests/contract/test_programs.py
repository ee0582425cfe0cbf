"""Programs of the field in spirit: what they call, in their order, with what they send and what they look at.

docs/migrating-from-openai.md names them. Their code is theirs; these are the requests that it makes.
"""

import csv
import io
import json
import time

import httpx

from tests import factories
from tests.conftest import Tenant
from tests.e2e.processes import BASE, Process, rows, wait_for

CLOUD_MODEL = "gpt-4o-mini-2024-07-18"


def test_the_cookbooks_notebook(server: Process) -> None:
    """OpenAI's cookbook, "How to fine-tune chat models": two files, a job with a suffix, a poll, events, the model."""
    client = server.client()
    training = client.files.create(file=("recipes_training.jsonl", rows(24)), purpose="fine-tune")
    validation = client.files.create(file=("recipes_validation.jsonl", rows(12, start=50)), purpose="fine-tune")
    response = client.fine_tuning.jobs.create(
        training_file=training.id, validation_file=validation.id, model=BASE, suffix="recipe-ner"
    )
    assert response.status == "validating_files"

    def look():
        job = client.fine_tuning.jobs.retrieve(response.id)
        assert job.status not in {"failed", "cancelled"}, job.error
        assert job.trained_tokens is None or job.status == "succeeded"
        return job if job.status == "succeeded" else None

    job = wait_for(look, seconds=200)

    events = client.fine_tuning.jobs.list_events(response.id).data
    assert [event.message for event in reversed(events)][-1] == "The job has successfully completed"
    assert any("training loss=" in event.message for event in events)
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith(f"ft:{BASE}:")
    assert ":recipe-ner:" in job.fine_tuned_model
    assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    table = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).read().decode())))
    assert {"step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"} <= set(table[0])


async def test_ruby_openai(tenant: Tenant) -> None:
    """The community's Ruby client: bare JSON, an empty object where others send no body, lists without parameters."""
    headers = {"Content-Type": "application/json", "OpenAI-Organization": ""}
    async with tenant.http() as http:
        sent = {"file": ("sentiment.jsonl", factories.jsonl(), "application/octet-stream")}
        file = (await http.post("/v1/files", data={"purpose": "fine-tune"}, files=sent)).json()
        assert (await http.get("/v1/files", headers=headers)).json()["data"][0]["id"] == file["id"]
        assert (await http.get(f"/v1/files/{file['id']}/content", headers=headers)).content == factories.jsonl()

        body = {"training_file": file["id"], "model": factories.BASE_MODEL}
        job = (await http.post("/v1/fine_tuning/jobs", headers=headers, json=body)).json()
        assert job["object"] == "fine_tuning.job"
        place = f"/v1/fine_tuning/jobs/{job['id']}"
        assert (await http.get("/v1/fine_tuning/jobs", headers=headers)).json()["data"][0]["id"] == job["id"]
        assert (await http.get(place, headers=headers)).json()["id"] == job["id"]
        events = (await http.get(f"{place}/events", headers=headers)).json()
        assert events["data"][0]["object"] == "fine_tuning.job.event"
        cancelled = (await http.post(f"{place}/cancel", headers=headers, json={})).json()
        assert (cancelled["id"], cancelled["status"]) == (job["id"], "cancelled")

        unknown = await http.delete("/v1/models/ft:123", headers=headers)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert "does not exist" in unknown.json()["error"]["message"]
        deleted = (await http.delete(f"/v1/files/{file['id']}", headers=headers)).json()
        assert deleted == {"id": file["id"], "object": "file", "deleted": True}


async def test_n8n(tenant: Tenant) -> None:
    """n8n: its OpenAI node uploads (the purpose before the file), an HTTP node creates the job, a loop asks for it."""
    await factories.base_model(tenant.resources, CLOUD_MODEL)
    async with tenant.http() as http:
        refused = await _upload_as_n8n_does(http, b"a,b\n1,2\n")
        assert refused.status_code == 400
        assert "Expected file to have JSONL format" in refused.json()["error"]["message"]

        file = (await _upload_as_n8n_does(http, factories.jsonl())).json()
        assert (file["purpose"], file["filename"]) == ("fine-tune", "travel.jsonl")
        text = json.dumps({"training_file": file["id"], "model": CLOUD_MODEL})
        headers = {"Content-Type": "application/json", "User-Agent": "axios/1.12.0"}
        job = (await http.post("/v1/fine_tuning/jobs", content=text, headers=headers)).json()
        assert job["model"] == CLOUD_MODEL
        again = (await http.get(f"/v1/fine_tuning/jobs/{job['id']}")).json()
        assert again["status"] == "validating_files"
        assert again["created_at"] <= time.time() + 1

        listed = (await http.get("/v1/files", params={"purpose": "fine-tune"})).json()
        assert file["id"] in [one["id"] for one in listed["data"]]
        assert CLOUD_MODEL in [one["id"] for one in (await http.get("/v1/models")).json()["data"]]


async def _upload_as_n8n_does(http: httpx.AsyncClient, content: bytes) -> httpx.Response:
    boundary = "--------------------------507311958310297614112908"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'.encode(),
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="travel.jsonl"\r\n'.encode(),
        b"Content-Type: application/json\r\n\r\n" + content + f"\r\n--{boundary}--\r\n".encode(),
    ]
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return await http.post("/v1/files", content=b"".join(parts), headers=headers)
