"""A whole run, much of which goes wrong, with secrets known beforehand: none of them is in anything that it leaves."""

import base64
import json
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import APIError

from app import sealing
from app.resources import open_resources
from app.storage.base import ObjectMissing
from tests.e2e.processes import KEY, Installation, Process, create_job, wait_for, wait_for_end, wait_for_step
from tests.history import snapshot
from tests.history.secrets import HUB_TOKEN, found, unpacked
from tests.servers.receiver import Handler, receiving

_GRADER = {
    "type": "score_model",
    "name": "score",
    "model": "judge",
    "input": [{"role": "user", "content": "Rate {{ sample.output_text }}"}],
    "range": [0, 10],
}


def indiscreet(handler: Handler) -> None:
    """Refuses, and says whom: what is asked of the operator's own servers holds their keys."""
    told = {"error": {"message": f"no access for {handler.headers.get('Authorization')} at {handler.path}"}}
    handler.reply(403, {"Content-Type": "application/json"}, json.dumps(told).encode())


def test_a_run_leaves_no_secret_anywhere(install: Callable[..., Installation], tmp_path: Path) -> None:
    planted = {
        "API key": KEY,
        "hub token": HUB_TOKEN,
        "W&B key": secrets.token_hex(20),
        "MLflow password": "a-secret-of-mlflow",
        "grader key": "a-secret-of-the-grader",
        "sealing key": sealing.new_key(),
        "key sealed with before": sealing.new_key(),
        "wrong API key": "sk-hone-a-key-that-nobody-has",
        "wrong database password": "a-wrong-secret/of-postgres",
        "wrong S3 secret": "a-wrong-secret-of-s3",
        "wrong Redis password": "a-wrong-secret-of-redis",
    }
    with receiving(indiscreet) as outside:
        port = str(outside.port)
        installation = install(
            secret_keys=f"{planted['sealing key']},{planted['key sealed with before']}",
            wandb_api_key=planted["W&B key"],
            wandb_base_url=outside.url,
            mlflow_tracking_uri=f"http://hone:{planted['MLflow password']}@127.0.0.1:{port}",
            tracker_timeout_seconds="20",
            grader_base_url=outside.url,
            grader_api_key=planted["grader key"],
            outgoing_allowed_networks="127.0.0.0/8",
            webhook_retry_seconds="0.2",
            log_level="debug",
        )
        planted |= _of_servers(installation)
        with installation.serving("--api-only") as server, installation.working() as worker, _watching(worker) as noted:
            _misuse(server, planted, outside.url)
            planted["webhook secret"], planted["webhook secret before"] = _webhooks(server, outside.url)
            _jobs(server)
            worker.interrupt()
        assert any("environment" in name and "worker.trainer" in name for name in noted)
        seen = [*noted.items()]
        seen += [(f"hone {' '.join(done.args[3:])}", output) for done, output in _commands(installation, planted)]
        assert any(got.headers.get("webhook-signature") for got in outside.received), "webhooks were tried"
        assert any(planted["grader key"] in str(got.headers) for got in outside.received), "a grader was asked"

    seen += [(str(path), path.read_bytes()) for path in sorted(installation.data.rglob("*")) if path.is_file()]
    seen += _rows_and_objects(installation)
    assert len(seen) > 40, "there was something to look through"
    texts = [inner for place, content in seen for inner in unpacked(place, content)]
    assert found(planted, texts) == []
    assert found({"event": "Created fine-tuning job"}, texts), "what is there is found"


def _of_servers(installation: Installation) -> dict[str, str]:
    """Of the databases and storage that the run was asked to use; on the embedded ones there are none."""
    settings = installation.as_settings()
    planted = {f"secret {number}": secret for number, secret in enumerate(sorted(settings.secrets))}
    return {name: secret for name, secret in planted.items() if secret != KEY}


def _misuse(server: Process, planted: dict[str, str], outside: str) -> None:
    """Requests that fail, with secrets where they do not belong."""
    wrong = planted["wrong API key"]
    with server.http() as http:
        for path in ("/v1/models", f"/v1/files/{wrong}", f"/v1/files?after={wrong}&key={KEY}", f"/v1/nowhere/{wrong}"):
            assert http.get(path, headers={"Authorization": f"Bearer {wrong}"}).status_code in (401, 404)
        assert http.post(f"/v1/files?key={KEY}", content=b"{").status_code == 400
        body = {"grader": _GRADER, "model_sample": "good", "item": {}}
        graded = http.post("/v1/fine_tuning/alpha/graders/run", json=body)
        assert graded.status_code == 200
        assert planted["grader key"] not in graded.text
        named = {"name": "x", "url": f"{outside.replace('//', '//u:p@')}", "event_types": ["fine_tuning.job.failed"]}
        assert http.post("/v1/webhook_endpoints", json=named).status_code == 400


def _webhooks(server: Process, outside: str) -> tuple[str, str]:
    """The present secret and the one before, both in use."""
    client = server.client()
    endpoint = client.webhooks.create(
        name="x", url=f"{outside}/hook", event_types=["fine_tuning.job.succeeded", "fine_tuning.job.failed"]
    )
    rotated = client.webhooks.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=True)
    assert client.webhooks.test(endpoint.id, event_type="fine_tuning.job.failed").status_code == 403
    return rotated.signing_secret, endpoint.signing_secret


def _jobs(server: Process) -> None:
    """One that ends well though its trackers fail, one that fails, one that is cancelled; with downloads."""
    client = server.client()
    wandb = [{"type": "wandb", "wandb": {"project": "p"}}]
    good = create_job(client, epochs=2, integrations=wandb, extra_body={"hone": {"trackers": {"mlflow": {}}}})
    bad = create_job(client, epochs=1, train=b'{"messages": "none"}\n' * 12)
    gone = create_job(client, epochs=50)
    assert wait_for_end(client, bad.id).status == "failed"
    assert wait_for_end(client, good.id, seconds=200).status == "succeeded"
    wait_for_step(client, gone.id, 1)
    client.fine_tuning.jobs.cancel(gone.id)
    with server.http() as http:
        assert http.get(f"/v1/fine_tuning/jobs/{good.id}/adapter").status_code == 200
        assert http.get(f"/v1/fine_tuning/jobs/{good.id}/logs").status_code == 200

        def gave_up() -> bool:
            shown = client.fine_tuning.jobs.retrieve(good.id).to_dict()["hone"]
            return [one["error"] is not None for one in shown["trackers"]] == [True, True]  # pyright: ignore

        assert wait_for(gave_up, seconds=120)
        endpoint = client.webhooks.list().data[0].id

        def told() -> list[object]:
            return http.get(f"/v1/webhook_endpoints/{endpoint}/deliveries").json()["data"]

        assert wait_for(told, seconds=30)
    with pytest.raises(APIError):
        client.fine_tuning.jobs.create(model="no-such-model", training_file="file-none")


@contextmanager
def _watching(worker: Process) -> Iterator[dict[str, bytes]]:
    """Notes the command lines of all processes that the worker starts, and the environments of those that train."""
    over = threading.Event()
    noted: dict[str, bytes] = {}

    def watch() -> None:
        while not over.wait(0.05):
            listing = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
            children = [int(pid) for pid, parent in map(str.split, listing.splitlines()) if parent == str(worker.pid)]
            for pid in children:
                try:
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    noted[f"command line {pid}"] = command
                    if b"worker.trainer" in command or b"worker.prepare" in command:
                        noted[f"environment of {command!r}"] = Path(f"/proc/{pid}/environ").read_bytes()
                except OSError:  # it has ended
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield noted
    finally:
        over.set()
        thread.join()


def _commands(
    installation: Installation, planted: dict[str, str]
) -> Iterator[tuple[subprocess.CompletedProcess[str], bytes]]:
    """What an operator runs, also with settings that are wrong."""
    password = base64.b64encode(planted["wrong database password"].encode()).decode()
    wrong = [
        {"HONE_DATABASE_URL": f"postgresql://hone:{password}@127.0.0.1:1/hone"},
        {"HONE_DATABASE_URL": f"mysql://hone:{planted['wrong database password']}@127.0.0.1:1/hone"},
        {"HONE_DATABASE_URL": f"postgresql://hone:{planted['wrong database password']}@127.0.0.1:x/hone"},
        {
            "HONE_S3_BUCKET": "none",
            "HONE_S3_ENDPOINT_URL": "http://127.0.0.1:1",
            "HONE_S3_ACCESS_KEY_ID": "somebody",
            "HONE_S3_SECRET_ACCESS_KEY": planted["wrong S3 secret"],
            "HONE_S3_TIMEOUT_SECONDS": "1",
        },
        {"HONE_REDIS_URL": f"redis://:{planted['wrong Redis password']}@127.0.0.1:1/0"},
        {"HONE_REDIS_URL": f"redis://:{planted['wrong Redis password']}@127.0.0.1:port/0"},
        {"HONE_SECRET_KEYS": planted["sealing key"][:-4]},
        {"HONE_API_KEY": KEY[:15]},
    ]
    for settings in ({}, *wrong):
        one = Installation(installation.data, installation.settings | settings, installation.history)
        yield _told(one.hone("doctor"))
    for arguments in (["secrets", "rotate"], ["workers", "list"], ["models", "list"]):
        done = installation.hone(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        yield _told(done)
    away = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(installation.data / "hf")}
    nobody = Installation(installation.data, installation.settings | away, installation.history)
    yield _told(nobody.hone("models", "add", "x", "--source", "acme/gated"))


def _told(done: subprocess.CompletedProcess[str]) -> tuple[subprocess.CompletedProcess[str], bytes]:
    return done, (done.stdout + done.stderr).encode()


def _rows_and_objects(installation: Installation) -> list[tuple[str, bytes]]:
    async def look() -> list[tuple[str, bytes]]:
        settings = installation.as_settings()
        taken = await snapshot.take(settings, [])
        everything = [*taken.texts.items()]
        async with open_resources(settings.model_copy(update={"redis_url": None})) as resources:
            async for page in resources.storage.list_objects(""):
                for info in page:
                    try:
                        content = b"".join([chunk async for chunk in resources.storage.read(info.key)])
                    except ObjectMissing:
                        continue
                    everything.append((f"object {info.key}", content))
        return everything

    import asyncio

    return asyncio.run(look())
