"""API, checking of files and training as processes of their own, as on separate machines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.processes import BASE, Installation, create_job, messages, wait_for, wait_for_end, wait_for_status

Install = Callable[..., Installation]


def listed(installation: Installation) -> dict[int, dict[str, Any]]:
    """The workers by pid."""
    shown = installation.hone("workers", "list", "--json")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return {worker["pid"]: worker for worker in json.loads(shown.stdout)["data"]}


def without_torch(directory: Path) -> str:
    """A path on which the training libraries cannot be imported."""
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        (directory / f"{name}.py").write_text(f"raise ImportError('{name} must not be imported here')\n")
    return str(directory)


def test_a_job_goes_through_three_kinds_of_processes(install: Install, tmp_path: Path) -> None:
    installation = install(lease_seconds="3")
    path = f"{without_torch(tmp_path)}:{Path(__file__).resolve().parents[2]}"
    checking = Installation(installation.data, installation.settings | {"PYTHONPATH": path})
    with installation.serving("--api-only") as api, checking.working("--cpu") as checker:
        client = api.client()
        job = create_job(client, epochs=1, extra_body={"hone": {"pool": "gpu-a"}})
        wait_for_status(client, job.id, "queued")
        assert messages(client, job.id)[-1] == "No worker of the pool 'gpu-a' is running; the job waits for one"
        with installation.working("--pool", "gpu-a", "--slots", "2") as trainer:
            assert wait_for_end(client, job.id).status == "succeeded"
            wait_for(
                lambda: {slot["state"] for slot in listed(installation)[trainer.pid]["slots"]} == {"idle"}, seconds=9
            )
            workers = listed(installation)
            assert (workers[checker.pid]["kinds"], workers[checker.pid]["slots"]) == (["cpu"], [])
            shown = workers[trainer.pid]
            assert (shown["pool"], shown["kinds"], shown["state"]) == ("gpu-a", ["train", "cpu"], "ready")
            assert [slot["number"] for slot in shown["slots"]] == [0, 1]
            assert BASE in [slot["base_model"] for slot in shown["slots"]]
            table = installation.hone("workers", "list").stdout
            assert all(text in table for text in (shown["id"], shown["hostname"], "gpu-a", BASE))

            checker.kill()
            wait_for(lambda: listed(installation)[checker.pid]["state"] == "dead", seconds=10)
            assert installation.hone("workers", "drain", shown["hostname"]).stdout.split()[-1] == shown["id"]
            assert trainer.ended() == 0
        unknown = installation.hone("workers", "drain", "worker-nobody")
        assert unknown.returncode == 1
        assert "hone workers list" in unknown.stdout


def test_files_may_be_deleted_as_soon_as_a_job_was_created_with_them(install: Install) -> None:
    installation = install()
    with installation.serving("--api-only") as api:
        client = api.client()
        job = create_job(client, epochs=1)
        for file_id in (job.training_file, job.validation_file):
            assert file_id is not None
            assert client.files.delete(file_id).deleted
        assert list(client.files.list()) == []
        with installation.working("--cpu"):
            wait_for_status(client, job.id, "queued")
            assert messages(client, job.id)[2] == "Files validated, moving job to queued state"


def test_a_drained_worker_leaves_the_api_of_its_process_alone(install: Install) -> None:
    installation = install(lease_seconds="3")
    with installation.serving() as server:
        ((_, worker),) = listed(installation).items()
        with server.http() as http:
            asked = http.post(f"/v1/admin/workers/{worker['id']}/drain")
            assert asked.status_code == 200
            wait_for(lambda: http.get("/v1/admin/workers").json()["data"] == [], seconds=30)
            assert http.get("/readyz").status_code == 200
        assert server.interrupt() == 0
