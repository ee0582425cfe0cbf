"""A checker that cannot fail proves nothing: each promise is broken by hand, and the breach is found and named."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.history import examples, promises
from tests.history.examples import ROOT, SECRET, exchange
from tests.history.promises import Record
from tests.history.recorder import Content, Seen
from tests.history.snapshot import Row

OTHER = Content.of(b"other bytes")
JOB, CHECKPOINT = "fine_tuning.job", "fine_tuning.job.checkpoint"
JOBS = "/v1/fine_tuning/jobs"
Breach = Callable[[Record], Any]


def row(record: Record, table: str, **named: Any) -> Row:
    """The one that is so named."""
    (found,) = [row for row in record.rows(table) if named.items() <= row.items()]
    return found


def change(table: str, name: str, **columns: Any) -> Breach:
    return lambda record: row(record, table, id=name).update(columns)


def add(table: str, copy_of: str, **columns: Any) -> Breach:
    return lambda record: record.rows(table).append({**row(record, table, id=copy_of), "id": "another", **columns})


def drop(table: str, **named: Any) -> Breach:
    return lambda record: record.rows(table).remove(row(record, table, **named))


def say(*made: Any, **more: Any) -> Breach:
    return lambda record: record.exchanges.append(exchange(*made, **more))  # pyright: ignore[reportAttributeAccessIssue]


def put(key: str, content: Content = OTHER) -> Breach:
    return lambda record: record.end.objects.update({key: content})


def take(key: str) -> Breach:
    return lambda record: record.end.objects.pop(key)


def write(where: str, text: str) -> Breach:
    return lambda record: record.end.texts.update({where: text.encode()})


def take_long(record: Record) -> None:
    (cancel,) = [made for made in record.exchanges if made.path.endswith("/cancel")]
    cancel.ended = cancel.began + 11


def demand_ends(record: Record) -> None:
    record.must_have_ended = True


STATE_2, ADAPTER_3 = f"{ROOT}/jobs/done/2/checkpoints/1/state.zip", f"{ROOT}/jobs/done/3/adapter.zip"

BREACHES: list[tuple[int, str, Breach]] = [
    (1, "an acknowledged job is gone", say("POST", "/v1/fine_tuning/jobs", Seen(JOB, "ftjob-lost", "queued"))),
    (1, "an acknowledged file is gone", drop("files", id="file-sent")),
    (1, "an event that was shown is gone", drop("events", id="done-5")),
    (1, "a checkpoint that was shown is gone", say("GET", "/done/checkpoints", Seen(CHECKPOINT, "lost", None, 1))),
    (2, "a running job that nobody holds", change("jobs", "running", lease_owner=None)),
    (2, "a lease that never ends", change("jobs", "running", lease_expires_at=None)),
    (2, "a queued job that nobody may claim", change("jobs", "queued", lease_owner="worker-a/0")),
    (2, "an ended job that is still held", change("jobs", "done", lease_owner="worker-a/0")),
    (2, "an end without a time", change("jobs", "failed", finished_at=None)),
    (2, "jobs that were waited for", demand_ends),
    (3, "two ends", add("events", "done-5", sequence=6)),
    (3, "an end that is not told", drop("events", id="failed-2")),
    (3, "another end than the job's", change("events", "cancelled-2", message=examples.DONE)),
    (3, "an end of a job that runs", change("events", "running-1", message=examples.DONE)),
    (3, "a gap in the numbers", change("events", "done-4", sequence=7)),
    (3, "a number given twice", change("events", "done-4", sequence=3)),
    (3, "a count that is ahead", change("jobs", "queued", event_sequence=2)),
    (3, "an event after the end", add("events", "done-2", sequence=6)),
    (3, "a status after the end", say("GET", "/v1/fine_tuning/jobs/done", Seen(JOB, "done", "running"))),
    (3, "another end than was told", say("GET", "/v1/fine_tuning/jobs", Seen(JOB, "queued", "failed"))),
    (4, "results of an earlier lease", change("jobs", "done", fence=4)),
    (4, "objects of a lease that was never given", put(f"{ROOT}/jobs/done/9/adapter.zip")),
    (4, "objects of another project's job", put("projects/proj-b/jobs/done/3/adapter.zip")),
    (4, "objects of a job that is not there", put(f"{ROOT}/jobs/nobody/1/adapter.zip")),
    (4, "a checkpoint of a lease that was lost", change("checkpoints", "checkpoint-1", step=3)),
    (4, "parts of two leases", change("checkpoints", "checkpoint-2", state_key=STATE_2)),
    (4, "a log of the fence of a cancellation", lambda record: record.rows("log_segments")[0].update(fence=2)),
    (4, "two models", add("fine_tuned_models", "ft:done")),
    (4, "a model of a failed job", add("fine_tuned_models", "ft:done", job_id="failed")),
    (4, "a step told twice", add("events", "done-3", sequence=6)),
    (4, "a step that is missing", drop("step_metrics", step=1)),
    (5, "two jobs for a key", say("POST", JOBS, Seen(JOB, "queued", "queued"), idempotency_key=examples.KEY)),
    (5, "a key that was forgotten", drop("job_requests", id="request")),
    (5, "a key that is remembered twice", add("job_requests", "request", job_id="queued")),
    (5, "a key of a job that is gone", change("job_requests", "request", job_id="ftjob-lost")),
    (6, "a cancellation that takes eleven seconds", take_long),
    (6, "a cancellation that did not last", change("jobs", "cancelled", status="succeeded")),
    (6, "a cancellation that did nothing", say("POST", "/queued/cancel", Seen(JOB, "queued", "queued"))),
    (7, "a crash too many", change("jobs", "failed", crashes=4)),
    (7, "a crash too few", change("jobs", "failed", crashes=2)),
    (7, "a job that crashes on", change("jobs", "running", crashes=3)),
    (7, "a failure without a reason", change("jobs", "failed", error=None)),
    (7, "a reason without a failure", change("jobs", "done", error={"code": "c", "message": "m"})),
    (8, "an error of the server's", say("GET", "/v1/fine_tuning/jobs", status=500)),
    (8, "a 503 that names no time", say("GET", "/v1/fine_tuning/jobs", status=503)),
    (8, "other bytes in storage", put(f"{ROOT}/files/file-sent")),
    (8, "a checkpoint without its object", take(STATE_2)),
    (8, "a model without its object", take(ADAPTER_3)),
    (8, "other bytes than were sent", change("files", "file-sent", bytes=5, storage_key=ADAPTER_3)),
    (8, "other bytes downloaded", say("GET", "/v1/files/file-sent/content", downloaded=OTHER)),
    (8, "a file that nobody has sent", add("files", "file-sent")),
    (9, "a row in another project", lambda record: record.rows("step_metrics")[0].update(project_id="proj-b")),
    (9, "another project's job shown", change("jobs", "done", project_id="proj-b")),
    (9, "a job shown to nobody", lambda record: record.rows("api_keys").clear()),
    (10, "a secret in a log", write("worker.log", f"connecting to redis://:{SECRET}@127.0.0.1")),
    (10, "a secret in a row", write("table events", f'[{{"message": "no such key: {SECRET}"}}]')),
    (10, "a secret in an answer", say("GET", "/readyz", shown_secrets=(SECRET,))),
    (11, "an end that nobody was told of", drop("webhook_deliveries", id="wh-done")),
    (11, "an end that was lost before anybody took it up", drop("webhook_events", id="evt-failed")),
    (11, "an end told twice", add("webhook_deliveries", "wh-done")),
    (11, "an end told that did not come", add("webhook_deliveries", "wh-done", subject_id="running")),
    (11, "another end told", change("webhook_deliveries", "wh-done", event_type="fine_tuning.job.failed")),
    (11, "an end told to another project", change("webhook_deliveries", "wh-done", endpoint_id="we-else")),
    (11, "given up without a reason", change("webhook_deliveries", "wh-cancelled", last_error=None)),
]  # fmt: skip


def test_a_kept_record_has_no_violations() -> None:
    assert promises.violations(examples.kept()) == []


@pytest.mark.parametrize(
    ("number", "what", "breach"), BREACHES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_broken_promise_is_found(number: int, what: str, breach: Breach) -> None:
    record = examples.kept()
    breach(record)
    found = promises.violations(record)
    assert number in {int(match[1]) for one in found if (match := re.match(r"promise (\d+) ", one))}, found


def test_each_promise_is_broken_at_least_thrice() -> None:
    for number in promises.PROMISES:
        assert sum(broken == number for broken, _, _ in BREACHES) >= 3


def test_what_may_be_so_is_no_violation() -> None:
    """A file that its owner deleted, an upload whose answer was lost, polls that overlap an end."""
    record = examples.kept()
    drop("files", id="file-sent")(record)
    say("DELETE", "/v1/files/file-sent")(record)
    assert promises.violations(record) == []

    record = examples.kept()  # its checkpoints are of the steps 1 and 2
    change("jobs", "done", total_steps=20, spec={"n_epochs": 20})(record)
    change("checkpoints", "checkpoint-2", step=4, state_key=None)(record)
    record.rows("step_metrics").clear()
    drop("checkpoints", id="checkpoint-1")(record)
    say("GET", "/v1/fine_tuning/jobs/done/checkpoints", Seen(CHECKPOINT, "checkpoint-1", None, 1))(record)
    assert promises.violations(record) == []

    record = examples.kept()
    add("files", "file-sent")(record)
    say("POST", "/v1/files", status=None, uploaded=examples.FILE)(record)
    overlapping = exchange("GET", "/v1/fine_tuning/jobs/done", Seen(JOB, "done", "running"))
    overlapping.began = 6.2
    record.exchanges.append(overlapping)  # pyright: ignore[reportAttributeAccessIssue]
    assert promises.violations(record) == []
