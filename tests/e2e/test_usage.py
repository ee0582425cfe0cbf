"""What a real run leaves in the books, also when its process is killed in the middle."""

import time
from collections.abc import Callable
from typing import Any

from tests.e2e.processes import BASE, Installation, Process, create_job, messages, wait_for_end, wait_for_step


def used(server: Process) -> dict[str, Any]:
    """Of yesterday and today, so that midnight does no harm."""
    params = {"start_time": int(time.time()) - 86400, "group_by[]": "model"}
    with server.http() as http:
        page = http.get("/v1/organization/usage/fine_tuning", params=params).json()
    found = [one for bucket in page["data"] for one in bucket["results"] if one["model"] == BASE]
    numbers = {name: sum(one[name] for one in found) for name in ("gpu_seconds", "cpu_seconds", "trained_tokens")}
    return numbers | {"succeeded": sum(one["jobs"]["succeeded"] for one in found)}


def test_a_killed_run_is_counted_once(install: Callable[..., Installation]) -> None:
    installation = install()
    began = time.monotonic()
    with installation.serving() as first:
        job = create_job(first.client(), epochs=8)
        wait_for_step(first.client(), job.id, 30)
        before = used(first)
        first.kill()
    with installation.serving() as second:
        job = wait_for_end(second.client(), job.id)
        after = used(second)
        elapsed = time.monotonic() - began
        with second.http() as http:
            logged = http.get("/v1/organization/audit_logs", params={"limit": 100}).json()["data"]

    assert 0 < before["trained_tokens"] < after["trained_tokens"]
    assert after["trained_tokens"] == job.trained_tokens
    seconds = "gpu_seconds" if after["gpu_seconds"] else "cpu_seconds"
    assert 0 < before[seconds] < after[seconds] < elapsed
    assert after["succeeded"] == 1
    actions = [one["type"] for one in logged]
    assert actions.count("fine_tuning.job.created") == 1
    (made,) = [one for one in logged if one["type"] == "model.created"]
    assert made["model.created"] == {"id": job.fine_tuned_model, "job_id": job.id}
    assert made["hone"]["actor"] == "worker"


def test_a_job_of_more_tokens_than_its_project_may_train_on_fails_with_the_figures(server: Process) -> None:
    client = server.client()
    with server.http() as http:
        (project,) = [one["id"] for one in http.get("/v1/admin/projects").json()["data"] if one["name"] == "default"]
        limits = f"/v1/admin/projects/{project}/limits"
        try:
            assert http.post(limits, json={"trained_tokens_per_job": 100}).status_code == 200
            refused = wait_for_end(client, create_job(client, epochs=2).id)
        finally:
            assert http.post(limits, json={"trained_tokens_per_job": None}).status_code == 200
    assert refused.status == "failed"
    assert refused.error
    assert (refused.error.code, refused.error.param) == ("trained_tokens_limit_exceeded", "training_file")
    assert "'trained_tokens_per_job' is 100" in refused.error.message
    assert refused.trained_tokens in (None, 0)
    assert not any(message.startswith("Step ") for message in messages(client, refused.id))
