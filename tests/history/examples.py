"""A record in which every promise is kept: one job of each end, with all that belongs to them. Tests break it."""

from datetime import UTC, datetime

from tests.history.promises import Record
from tests.history.recorder import Content, Exchange, Seen
from tests.history.snapshot import Row, Snapshot

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SECRET = "a-secret-to-keep"
KEY = "a-key-of-a-request"
DONE, CANCELLED = "The job has successfully completed", "The job has been cancelled"
FILE, RESULT, ADAPTER, STATE = (Content.of(name.encode()) for name in ("file", "result", "adapter", "state"))
_KEY_HASH, _PROJECT = "hash of a key", "proj-a"
ROOT = f"projects/{_PROJECT}"


def kept() -> Record:
    """A succeeded job of two runs, a cancelled one, a failed one, a running one and a queued one."""
    jobs = [
        _job("done", "succeeded", fence=3, result_file_ids=["file-result"], total_steps=2),
        _job("cancelled", "cancelled", fence=2),
        _job("failed", "failed", fence=4, crashes=3, error={"code": "worker_crashed", "message": "Three crashes."}),
        _job("running", "running", fence=2, lease_owner="worker-a/0", lease_expires_at=NOW),
        _job("queued", "queued", fence=1),
    ]
    steps = [_event("done", number + 2, f"Step {number}/2", type="metrics", data={"step": number}) for number in (1, 2)]
    events = [_event(job["id"], 1, "Created fine-tuning job") for job in jobs]
    events += [*steps, _event("done", 2, "Fine-tuning job started"), _event("done", 5, DONE)]
    events += [_event("cancelled", 2, CANCELLED), _event("failed", 2, "Three crashes.", level="error")]
    for job in jobs:
        job["event_sequence"] = sum(event["job_id"] == job["id"] for event in events)
    checkpoints = [_checkpoint("done", step, fence) for step, fence in ((1, 2), (2, 3))]
    files = [
        _file("file-sent", f"{ROOT}/files/file-sent", FILE, "fine-tune"),
        _file("file-result", f"{ROOT}/jobs/done/3/step_metrics.csv", RESULT, "fine-tune-results"),
    ]
    model: Row = {"id": "ft:done", "job_id": "done", "project_id": _PROJECT}
    model |= {
        "adapter_key": f"{ROOT}/jobs/done/3/adapter.zip",
        "adapter_sha256": ADAPTER.sha256,
        "adapter_bytes": ADAPTER.num_bytes,
    }
    segment: Row = {"job_id": "cancelled", "fence": 1, "number": 1, "project_id": _PROJECT}
    request: Row = {"id": "request", "job_id": "done", "project_id": _PROJECT, "idempotency_key": KEY}
    metrics = [{"job_id": "done", "project_id": _PROJECT, "step": step, "kind": "train"} for step in (1, 2)]
    tables = {
        "jobs": jobs,
        "events": events,
        "checkpoints": checkpoints,
        "files": files,
        "fine_tuned_models": [model],
        "log_segments": [segment],
        "step_metrics": metrics,
        "webhook_endpoints": [_endpoint("we-a"), _endpoint("we-else", project_id="proj-b")],
        "webhook_events": [{"id": "evt-failed", "type": "fine_tuning.job.failed", "subject_id": "failed"}],
        "webhook_deliveries": [
            _delivery("done", "succeeded", delivered_at=NOW, last_status_code=200),
            _delivery("cancelled", "cancelled", last_error="The connection was refused."),
        ],
        "job_requests": [request],
        "api_keys": [{"id": "key-a", "key_hash": _KEY_HASH, "project_id": _PROJECT}],
    }
    objects = {file["storage_key"]: Content(file["bytes"], file["sha256"]) for file in files}
    objects |= {f"{ROOT}/jobs/done/3/adapter.zip": ADAPTER, f"{ROOT}/jobs/failed/2/orphan.zip": ADAPTER}
    for row in checkpoints:
        objects |= {row["adapter_key"]: ADAPTER, row["state_key"]: STATE}
    end = Snapshot(tables, objects, {"worker.log": b"nothing to see"})
    return Record(_exchanges(), end, {SECRET})


def _exchanges() -> list[Exchange]:
    jobs = "/v1/fine_tuning/jobs"
    made = [
        exchange("POST", "/v1/files", Seen("file", "file-sent", "processed"), uploaded=FILE),
        *(exchange("POST", jobs, Seen("fine_tuning.job", name, "queued")) for name in ("done", "cancelled", "failed")),
        exchange("GET", f"{jobs}/done", Seen("fine_tuning.job", "done", "running")),
        exchange("POST", f"{jobs}/cancelled/cancel", Seen("fine_tuning.job", "cancelled", "cancelled")),
        exchange("GET", f"{jobs}/done", Seen("fine_tuning.job", "done", "succeeded")),
        exchange("GET", f"{jobs}/done/events", Seen("fine_tuning.job.event", "done-5", None)),
        exchange("GET", "/v1/files/file-sent/content", downloaded=FILE),
        exchange("GET", "/v1/files/file-result/content", status=503, retry_after="1"),
    ]
    made += [exchange("POST", jobs, Seen("fine_tuning.job", "done", "succeeded"), idempotency_key=KEY)]
    for number, one in enumerate(made):  # one after the other
        one.began, one.ended = number, number + 0.5
    return made


def exchange(method: str, path: str, *seen: Seen, status: int | None = 200, **more) -> Exchange:
    return Exchange(method, path, 100.0, ended=100.5, caller=_KEY_HASH, seen=seen, status=status, **more)


def _job(name: str, status: str, **columns: object) -> Row:
    row: Row = {"id": name, "project_id": _PROJECT, "status": status, "crashes": 0, "error": None, "lease_owner": None}
    row |= {"finished_at": NOW if status in ("succeeded", "failed", "cancelled") else None, "lease_expires_at": None}
    return row | {"result_file_ids": [], "total_steps": None, "spec": {"n_epochs": 1}} | columns


def _event(job_id: str, sequence: int, message: str, **columns: object) -> Row:
    row: Row = {"id": f"{job_id}-{sequence}", "job_id": job_id, "project_id": _PROJECT, "sequence": sequence}
    return row | {"message": message, "level": "info", "type": "message", "data": None} | columns


def _file(name: str, key: str, content: Content, purpose: str) -> Row:
    row: Row = {"id": name, "project_id": _PROJECT, "storage_key": key, "purpose": purpose}
    return row | {"bytes": content.num_bytes, "sha256": content.sha256}


def _endpoint(name: str, **columns: object) -> Row:
    kinds = [f"fine_tuning.job.{end}" for end in ("succeeded", "failed", "cancelled")]
    return {"id": name, "project_id": _PROJECT, "event_types": kinds, "updated_at": NOW} | columns


def _delivery(job_id: str, end: str, **columns: object) -> Row:
    row: Row = {"id": f"wh-{job_id}", "project_id": _PROJECT, "endpoint_id": "we-a", "subject_id": job_id}
    row |= {"event_type": f"fine_tuning.job.{end}", "attempts": 1, "next_attempt_at": None, "delivered_at": None}
    return row | {"last_status_code": None, "last_error": None} | columns


def _checkpoint(job_id: str, step: int, fence: int) -> Row:
    at = f"{ROOT}/jobs/{job_id}/{fence}/checkpoints/{step}"
    row: Row = {"id": f"checkpoint-{step}", "job_id": job_id, "project_id": _PROJECT, "step": step}
    row |= {"adapter_key": f"{at}/adapter.zip", "state_key": f"{at}/state.zip"}
    row |= {"adapter_sha256": ADAPTER.sha256, "adapter_bytes": ADAPTER.num_bytes}
    return row | {"state_sha256": STATE.sha256, "state_bytes": STATE.num_bytes}
