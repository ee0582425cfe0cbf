"""What Hone promises, as questions to a history and to what was left at its end (docs/reliability.md).

Each function yields a sentence for each way in which its promise was broken. They take nothing from the code that
keeps the promises: an event that ends a job is told by its words.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.history.recorder import Content, Exchange
from tests.history.snapshot import Row, Snapshot

CANCEL_SECONDS = 10.0
KEPT_EPOCHS = 3  # whose checkpoints stay
_JOBS = "/v1/fine_tuning/jobs"
_TERMINAL = {"succeeded", "failed", "cancelled"}
_LAST_WORDS = {"The job has successfully completed": "succeeded", "The job has been cancelled": "cancelled"}
_JOB_KEY = re.compile(r"projects/(?P<project>[^/]+)/jobs/(?P<job>[^/]+)/(?P<fence>\d+)/")
_TABLES = {  # of what is shown to clients, by its wire name
    "fine_tuning.job": "jobs",
    "fine_tuning.job.event": "events",
    "fine_tuning.job.checkpoint": "checkpoints",
    "file": "files",
    "webhook_endpoint": "webhook_endpoints",
}


@dataclass
class Record:
    """A history with its end. `must_have_ended`: the test waited for all of its jobs."""

    exchanges: Sequence[Exchange]
    end: Snapshot
    secrets: Iterable[str]
    max_crashes: int = 3
    must_have_ended: bool = False
    patience: float = 1.0  # by which promised times are multiplied on a machine that does much else

    def rows(self, table: str) -> list[Row]:
        return self.end.tables.get(table, [])

    def by_id(self, table: str) -> dict[str, Row]:
        return {row["id"]: row for row in self.rows(table)}

    def of_jobs(self, table: str) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows(table):
            found[row["job_id"]].append(row)
        return found

    def may_be_deleted(self) -> set[str]:
        """What a client has asked to delete, whether or not it was told that it is done."""
        return {made.path.rsplit("/", 1)[1] for made in self.exchanges if made.method == "DELETE"}


def acknowledged_survives(record: Record) -> Iterator[str]:
    """What a client was told of, by an answer to whatever request, is there."""
    gone = record.may_be_deleted()
    held = {kind: record.by_id(table) for kind, table in _TABLES.items()}
    told: dict[tuple[str, str], Exchange] = {}
    for made in record.exchanges:
        for seen in made.seen if made.is_acknowledged else ():
            told.setdefault((seen.kind, seen.id), made)
    for (kind, identity), made in told.items():
        if kind in held and identity not in held[kind] and identity not in gone and not _is_old(record, made, identity):
            yield f"{kind} {identity} was told of by {made} and is lost"


def _is_old(record: Record, made: Exchange, identity: str) -> bool:
    """A checkpoint of an epoch that is too long ago for it to be kept."""
    step = next((seen.step for seen in made.seen if seen.id == identity), None)
    job = record.by_id("jobs").get(made.path.split("/")[-2])
    kept = record.of_jobs("checkpoints").get(job["id"]) if job is not None else None
    if step is None or job is None or not kept or not job["total_steps"]:
        return False
    steps_an_epoch = job["total_steps"] // job["spec"]["n_epochs"]
    newest = max(row["step"] for row in kept)
    return (step - 1) // steps_an_epoch <= (newest - 1) // steps_an_epoch - KEPT_EPOCHS


def ended_or_waiting(record: Record) -> Iterator[str]:
    """No job is in a state that nobody would ever bring to an end."""
    for job in record.rows("jobs"):
        status, owner, name = str(job["status"]), job["lease_owner"], f"job {job['id']}"
        if status in _TERMINAL:
            if owner is not None:
                yield f"{name} is {status} and still leased to {owner}"
            if job["finished_at"] is None:
                yield f"{name} is {status} and has no end"
            continue
        if record.must_have_ended:
            yield f"{name} is {status}; it should have ended"
        if status == "running" and (owner is None or job["lease_expires_at"] is None):
            yield f"{name} is running and nobody has a lease on it that ends"
        if status in ("queued", "paused") and owner is not None:
            yield f"{name} is {status}, but leased to {owner}: nobody may claim it"


def told_once(record: Record) -> Iterator[str]:
    """Events are numbered without gaps, the last one of an ended job says how, and no status follows its end."""
    events = record.of_jobs("events")
    for job in record.rows("jobs"):
        name, status = f"job {job['id']}", str(job["status"])
        told = sorted(events[job["id"]], key=lambda event: event["sequence"])
        if [event["sequence"] for event in told] != list(range(1, job["event_sequence"] + 1)):
            yield f"{name} has events {[event['sequence'] for event in told]}, counted {job['event_sequence']}"
        ends = [event for event in told if _ended_by(event)]
        if status in _TERMINAL:
            if [_ended_by(event) for event in ends] != [status]:
                yield f"{name} is {status} and told its end as {[event['message'] for event in ends]}"
            elif told[-1] is not ends[0]:
                yield f"{name} tells {told[-1]['message']!r} after its end"
        elif ends:
            yield f"{name} is {status} and told of its end: {ends[0]['message']!r}"
    yield from _statuses_after_the_end(record)


def _ended_by(event: Row) -> str | None:
    return "failed" if event["level"] == "error" else _LAST_WORDS.get(event["message"])


def _statuses_after_the_end(record: Record) -> Iterator[str]:
    """As clients saw them, and as the row has it; requests that overlap may be answered in any order."""
    polls: dict[str, list[tuple[Exchange, str]]] = defaultdict(list)
    for made in record.exchanges:
        for seen in made.seen:
            if seen.kind == "fine_tuning.job" and seen.status is not None:
                polls[seen.id].append((made, seen.status))
    jobs = record.by_id("jobs")
    for job_id, found in polls.items():
        ends = [(made.ended, status) for made, status in found if status in _TERMINAL]
        if not ends:
            continue
        known_at, end = min(ends)
        for made, status in found:
            if made.began > known_at and status != end:
                yield f"job {job_id} was {end}, and later {status}"
        if job_id in jobs and str(jobs[job_id]["status"]) != end:
            yield f"job {job_id} was {end}, and is {jobs[job_id]['status']} in the end"


def fenced(record: Record) -> Iterator[str]:
    """What a job shows was made under the leases that it had, its results under the last; each step counts once."""
    jobs, files = record.by_id("jobs"), record.by_id("files")
    models, events = record.of_jobs("fine_tuned_models"), record.of_jobs("events")
    checkpoints, segments = record.of_jobs("checkpoints"), record.of_jobs("log_segments")
    for key in record.end.objects:
        if match := _JOB_KEY.match(key):
            job = jobs.get(match["job"])
            if job is None or int(match["fence"]) > job["fence"]:
                yield f"{key} lies in storage, but no such lease was given"
            elif match["project"] != job["project_id"]:
                yield f"{key} lies with another project than {job['project_id']}, whose job it is"
    for job in jobs.values():
        name, last = f"job {job['id']}", job["fence"]
        results = [files[one]["storage_key"] for one in job["result_file_ids"] if one in files]
        results += [model["adapter_key"] for model in models[job["id"]]]
        for key in results:
            if _fence(key) != last:
                yield f"{name} publishes {key}, but its last fence is {last}"
        of_steps = sorted(checkpoints[job["id"]], key=lambda row: row["step"])
        fences = [_fence(row["adapter_key"]) for row in of_steps]
        apart = [row for row in of_steps if row["state_key"] and _fence(row["state_key"]) != _fence(row["adapter_key"])]
        if fences != sorted(fences) or apart:
            yield f"{name} has checkpoints of fences {fences}: an earlier lease came after a later one"
        fences += [row["fence"] for row in segments[job["id"]]]
        if any(fence >= last for fence in fences) and job["status"] == "cancelled":
            yield f"{name} was cancelled at fence {last}, and something was stored under it"
        if len(models[job["id"]]) > (1 if job["status"] == "succeeded" else 0):
            yield f"{name} is {job['status']} and has {len(models[job['id']])} models"
        steps = Counter(event["data"]["step"] for event in events[job["id"]] if event["type"] == "metrics")
        if twice := [step for step, count in steps.items() if count > 1]:
            yield f"{name} tells twice of the steps {twice}"
    yield from _incomplete_runs(record)


def _incomplete_runs(record: Record) -> Iterator[str]:
    metrics = record.of_jobs("step_metrics")
    for job in record.rows("jobs"):
        if job["status"] != "succeeded" or job["id"] not in metrics:
            continue
        steps = sorted(row["step"] for row in metrics[job["id"]] if row["kind"] == "train")
        if steps != list(range(1, job["total_steps"] + 1)):
            yield f"job {job['id']} succeeded with the steps {steps} of {job['total_steps']}"


def _fence(key: str) -> int:
    match = _JOB_KEY.match(key)
    return int(match["fence"]) if match else -1


def one_job_for_a_key(record: Record) -> Iterator[str]:
    """Whoever has sent a key was answered with one job, the one that is remembered for the key."""
    callers = {key["key_hash"]: key["project_id"] for key in record.rows("api_keys")}
    jobs = record.by_id("jobs")
    remembered: dict[tuple[str | None, str], str] = {}
    for row in record.rows("job_requests"):
        if row["job_id"] not in jobs:
            yield f"the request {row['id']} is remembered for the job {row['job_id']}, which is not there"
        key = row["project_id"], row["idempotency_key"]
        if row["idempotency_key"] is not None and remembered.setdefault(key, row["job_id"]) != row["job_id"]:
            yield f"the key {key[1]} is remembered for two jobs"
    for made in record.exchanges:
        if made.idempotency_key is None or made.path != _JOBS or not made.is_acknowledged:
            continue
        key = callers.get(made.caller or ""), made.idempotency_key
        for seen in made.seen:
            if seen.id != remembered.get(key):
                yield f"{made} with the key {key[1]} showed {seen.id}; remembered is {remembered.get(key)}"


def cancelled_in_time(record: Record) -> Iterator[str]:
    """Who is told that a job is cancelled is told so in time, and the job is."""
    jobs = record.by_id("jobs")
    for made in record.exchanges:
        if made.method != "POST" or not made.path.endswith("/cancel") or not made.is_acknowledged:
            continue
        seconds = made.ended - made.began
        if seconds > CANCEL_SECONDS * record.patience:
            yield f"{made} took {seconds:.1f} s"
        for seen in made.seen:
            found = str(jobs[seen.id]["status"]) if seen.id in jobs else None
            if (seen.status, found) != ("cancelled", "cancelled"):
                yield f"{made} was answered with {seen.status}, and the job is {found}"


def tried_so_often(record: Record) -> Iterator[str]:
    """A job fails at its last permitted crash, and not before; whoever fails can read why."""
    for job in record.rows("jobs"):
        crashes, error, name = job["crashes"], job["error"] or {}, f"job {job['id']}"
        if crashes > record.max_crashes:
            yield f"{name} crashed {crashes} times, of {record.max_crashes} permitted"
        if crashes >= record.max_crashes and job["status"] != "failed":
            yield f"{name} is {job['status']} after {crashes} crashes"
        if error.get("code") == "worker_crashed" and crashes < record.max_crashes:
            yield f"{name} failed after {crashes} crashes, of {record.max_crashes} permitted"
        if (job["status"] == "failed") != bool(error.get("code") and error.get("message")):
            yield f"{name} is {job['status']} with the error {error}"


def whole(record: Record) -> Iterator[str]:
    """No request breaks the server; what is shown is all there, and comes back as it was sent."""
    for made in record.exchanges:
        if made.status is not None and made.status >= 500 and (made.status != 503 or not made.retry_after):
            yield f"{made}, with Retry-After {made.retry_after}"
    for what, key, content in _named_objects(record):
        if record.end.objects.get(key) != content:
            yield f"{what} names {key} with {content}, and there lies {record.end.objects.get(key)}"
    files = record.by_id("files")
    uploads = {made.seen[0].id: made for made in record.exchanges if made.uploaded and made.is_acknowledged}
    for file_id, made in uploads.items():
        if file_id in files and _content(files[file_id]) != made.uploaded:
            yield f"file {file_id} was sent as {made.uploaded}, and is {_content(files[file_id])}"
    for made in record.exchanges:
        parts = made.path.split("/")
        if made.downloaded is None or parts[-1] != "content" or parts[-2] not in files:
            continue
        if made.downloaded != _content(files[parts[-2]]):
            yield f"{made} gave {made.downloaded} for {_content(files[parts[-2]])}"
    yield from _unasked_files(record, uploads)


def _named_objects(record: Record) -> Iterator[tuple[str, str, Content]]:
    for file in record.rows("files"):
        yield f"file {file['id']}", file["storage_key"], _content(file)
    for row in record.rows("checkpoints"):
        for part in ("adapter", "state") if row["state_key"] else ("adapter",):
            yield f"checkpoint {row['id']}", row[f"{part}_key"], Content(row[f"{part}_bytes"], row[f"{part}_sha256"])
    for model in record.rows("fine_tuned_models"):
        content = Content(model["adapter_bytes"], model["adapter_sha256"])
        yield f"model {model['id']}", model["adapter_key"], content


def _content(file: Row) -> Content:
    return Content(file["bytes"], file["sha256"])


def _unasked_files(record: Record, uploads: dict[str, Exchange]) -> Iterator[str]:
    """A file that no answer told of was sent by a request that got none, and is what was sent."""
    unanswered = [made.uploaded for made in record.exchanges if made.uploaded and not made.is_acknowledged]
    if not uploads and not unanswered:  # the test has put its files there itself
        return
    for file in record.rows("files"):
        if file["purpose"] == "fine-tune-results" or file["id"] in uploads:
            continue
        if _content(file) in unanswered:
            unanswered.remove(_content(file))
        else:
            yield f"file {file['id']} is {_content(file)}, which nobody has sent"


def tenants_apart(record: Record) -> Iterator[str]:
    """Everything about a job is its project's, and nobody was shown another project's."""
    jobs = record.by_id("jobs")
    for table in ("events", "step_metrics", "checkpoints", "log_segments", "fine_tuned_models"):
        for row in record.rows(table):
            job = jobs.get(row["job_id"])
            if job is not None and job["project_id"] != row["project_id"]:
                yield f"a row of {table} is of another project than its job {job['id']}"
    callers = {key["key_hash"]: key["project_id"] for key in record.rows("api_keys")}
    owners = {kind: {row["id"]: row["project_id"] for row in record.rows(table)} for kind, table in _TABLES.items()}
    for made in record.exchanges:
        for seen in made.seen:
            owner = owners.get(seen.kind, {}).get(seen.id)
            if owner is not None and callers.get(made.caller or "") != owner:
                yield f"{made} showed {seen.kind} {seen.id} of another project"


def secrets_kept(record: Record) -> Iterator[str]:
    for number, secret in enumerate(record.secrets):
        for where, text in record.end.texts.items():
            if secret.encode() in text:
                yield f"secret {number}, {secret[:4]}..., stands in {where}"
    for made in record.exchanges:
        if made.shown_secrets:
            yield f"{made} was answered with a secret"


def webhooks_told(record: Record) -> Iterator[str]:
    """Each end is kept once for each endpoint that asked for it in time, and nothing else is; who gives up says why.

    An end is a delivery, or an event that no worker has taken up yet. Endpoints that were changed since are left out.
    """
    jobs, endpoints = record.by_id("jobs"), record.by_id("webhook_endpoints")
    waiting = {(row["subject_id"], row["type"]) for row in record.rows("webhook_events")}
    told = Counter(
        (row["endpoint_id"], row["subject_id"], row["event_type"]) for row in record.rows("webhook_deliveries")
    )
    for job in jobs.values():
        kind = f"fine_tuning.job.{job['status']}"
        for endpoint in endpoints.values() if str(job["status"]) in _TERMINAL and job["finished_at"] else ():
            was_there = endpoint["updated_at"] <= job["finished_at"] and kind in endpoint["event_types"]
            count = told[endpoint["id"], job["id"], kind] + ((job["id"], kind) in waiting)
            if was_there and endpoint["project_id"] == job["project_id"] and count != 1:
                yield f"that job {job['id']} is {job['status']} is told to {endpoint['id']} {count} times"
    for row in record.rows("webhook_deliveries"):
        name, job, endpoint = f"delivery {row['id']}", jobs.get(row["subject_id"]), endpoints.get(row["endpoint_id"])
        end = row["event_type"].removeprefix("fine_tuning.job.")
        if job is None or endpoint is None or not job["project_id"] == row["project_id"] == endpoint["project_id"]:
            yield f"{name} is of another project than its job or its endpoint"
        elif end in _TERMINAL and str(job["status"]) != end:
            yield f"{name} tells that job {job['id']} is {end}, and it is {job['status']}"
        has_reason = row["last_error"] is not None or row["last_status_code"] is not None
        if row["next_attempt_at"] is None and not (row["delivered_at"] or (row["attempts"] and has_reason)):
            yield f"{name} was given up and does not say why"


PROMISES: dict[int, tuple[str, Callable[[Record], Iterator[str]]]] = {
    1: ("what was acknowledged survives", acknowledged_survives),
    2: ("every job has ended, or waits where it can be seen", ended_or_waiting),
    3: ("one end for each job, and nothing after it", told_once),
    4: ("who has lost a job changes nothing", fenced),
    5: ("one job for one Idempotency-Key", one_job_for_a_key),
    6: ("a cancellation is final, in ten seconds", cancelled_in_time),
    7: ("so many attempts and no more", tried_so_often),
    8: ("no error of the server's, nothing partial, the same bytes back", whole),
    9: ("projects see only their own", tenants_apart),
    10: ("no secret is written or told", secrets_kept),
    11: ("each webhook is told of each end under one id", webhooks_told),
}


def violations(record: Record) -> list[str]:
    """All of them, each with the number of its promise."""
    return [
        f"promise {number} ({promise}): {found}"
        for number, (promise, look) in PROMISES.items()
        for found in look(record)
    ]
