"""What the soak found: by the rows and objects that are left, and by the clients' own questions."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from benchmarks.soak_chaos import Chaos, Strike
from benchmarks.soak_jobs import Ask, Caller
from tests.e2e.processes import Installation
from tests.history import keeping, promises
from tests.history.snapshot import Row, Snapshot

_RUN_BEGINS = ("Fine-tuning job started", "Fine-tuning job resumed")


def report(
    installation: Installation,
    chaos: Chaos,
    asks: Sequence[Ask],
    references: dict[str, str],
    caller: Caller,
    failures: Sequence[str],
) -> dict[str, Any]:
    record = keeping.record(installation, must_have_ended=True)
    broken = promises.violations(record)
    jobs = record.by_id("jobs")
    events: dict[str, list[Row]] = record.of_jobs("events")
    lost, other_figures = _not_as_asked(asks, jobs), _other_figures(asks, jobs, references, caller)
    unacknowledged = len(jobs) - len(references) - sum(ask.job_id in jobs for ask in asks)
    if unacknowledged > (unanswered := sum(ask.lost_answers for ask in asks)):
        broken.append(f"{unacknowledged} jobs are there that nobody was told of, and {unanswered} answers were lost")
    for sentence in [*broken, *lost, *other_figures, *failures]:
        print(sentence, flush=True)
    resumed = {job_id: sum(event["message"] == _RUN_BEGINS[1] for event in told) for job_id, told in events.items()}
    return {
        "benchmark": "soak",
        "lost": len(lost),
        "doubled": len(_doubled(record.end)),
        "with_other_figures": len(other_figures),
        "broken_promises": len(broken),
        "jobs": len(asks),
        "unacknowledged_jobs": unacknowledged,
        "client_failures": len(failures),
        "ends": dict(Counter(str(job["status"]) for job in jobs.values())),
        "kills": sum(chaos.kills().values()),
        "kills_by_signal": dict(chaos.kills()),
        "restarts": {which: len(seconds) for which, seconds in chaos.restarts.items()},
        "requests": len(record.exchanges),
        "refused_with_503": sum(made.status == 503 for made in record.exchanges),
        "unanswered": sum(made.status is None for made in record.exchanges),
        "runs_resumed": sum(resumed.values()),
        "most_resumed": max(resumed.values(), default=0),
        "median_seconds": _medians(chaos, events),
    }


def _not_as_asked(asks: Sequence[Ask], jobs: dict[str, Row]) -> list[str]:
    found: list[str] = []
    for ask in asks:
        status = str(jobs[ask.job_id]["status"]) if ask.job_id in jobs else "not there"
        # A job that is to be cancelled may be done before.
        if status != ask.kind.end and (ask.kind.end, status) != ("cancelled", "succeeded"):
            reason = jobs[ask.job_id]["error"] if ask.job_id in jobs else None
            found.append(f"job {ask.job_id} of the kind {ask.kind.name} is {status}: {reason}")
    return found


def _other_figures(asks: Sequence[Ask], jobs: dict[str, Row], references: dict[str, str], caller: Caller) -> list[str]:
    """Those whose step metrics are not, to the last digit, those of the undisturbed run of their kind."""
    return [
        f"job {ask.job_id} of the kind {ask.kind.name} has other figures than an undisturbed one"
        for ask in asks
        if ask.job_id in jobs
        and jobs[ask.job_id]["status"] == "succeeded"
        and ask.kind.name in references
        and caller.metrics(caller.job(ask.job_id)) != references[ask.kind.name]
    ]


def _doubled(end: Snapshot) -> set[str]:
    """Jobs of which something is there twice that may be there once: an end, a model, a telling of a step."""
    once: Counter[tuple[str, str]] = Counter()
    for event in end.tables["events"]:
        if event["type"] == "metrics":
            once[event["job_id"], f"step {event['data']['step']}"] += 1
        elif event["level"] == "error" or re.fullmatch("The job has .*(completed|cancelled)", event["message"]):
            once[event["job_id"], "end"] += 1
    for model in end.tables["fine_tuned_models"]:
        once[model["job_id"], "model"] += 1
    return {job_id for (job_id, _), count in once.items() if count > 1}


def _medians(chaos: Chaos, events: dict[str, list[Row]]) -> dict[str, float | None]:
    """Until a struck worker's job runs again, until a killed process is back, until all answer after a restart."""
    found = {
        f"job_runs_again_after_{what}": [
            seconds
            for strike in chaos.strikes
            if strike.what == what and (seconds := _until_it_runs_again(strike, events)) is not None
        ]
        for what in ("SIGKILL", "SIGTERM", "SIGSTOP")
    }
    found["killed_process_is_back"] = [
        strike.back_after_seconds for strike in chaos.strikes if strike.what == "SIGKILL"
    ]
    found |= {f"all_answer_after_{which}": seconds for which, seconds in chaos.restarts.items()}
    return {name: round(statistics.median(seconds), 2) if seconds else None for name, seconds in found.items()}


def _until_it_runs_again(strike: Strike, events: dict[str, list[Row]]) -> float | None:
    """Of the job at which the process last went to work, if it was taken from it: seconds until its next run."""
    claimed = re.findall(r"job (ftjob-\S+): claimed by", strike.log.read_text())
    if not claimed:
        return None
    after: list[tuple[datetime, str]] = [
        (event["created_at"], event["message"]) for event in events[claimed[-1]] if event["created_at"] > strike.at
    ]
    begins = [at for at, message in after if message in _RUN_BEGINS]
    return (min(begins) - strike.at).total_seconds() if begins else None
