"""Group 74: lists, events, cancelling, webhooks."""

import json

from tests.hostile.cases import ANY, JOBS, JSON, Case
from tests.hostile.urls import HOSTILE_URLS

_LIMITS = ("abc", "-1", "101", "1e3", "1" + "0" * 20, "%D9%A5", "1_0", "%205", "5.0")
_QUERIES = [
    *((f"limit={bad}", "limit") for bad in _LIMITS),
    ("limit=5&limit=6", "limit"),
    ("after=%00", "after"),
    ("after=ftjob-unknown", "after"),
    ("after=" + "x" * 5000, "after"),
    ("after={OTHERS_JOB}", "after"),
    ("after=a&after=b", "after"),
    ("metadata=x", "metadata"),
    ("metadata=null&metadata[a]=b", "metadata"),
    ("metadata[%00]=b", ANY),
    ("&".join(f"metadata[k{i}]=v" for i in range(17)), "metadata"),
]
CASES = [
    Case(group=74, name=f"?{query[:40]}", status=400, code=ANY, param=param, target=f"{JOBS}?{query}")
    for query, param in _QUERIES
]
CASES += [
    Case(group=74, name=f"{path}?limit={bad}", status=400, code=ANY, param="limit", target=f"{path}?limit={bad}")
    for path in ("/v1/files", f"{JOBS}/{{JOB}}/events", f"{JOBS}/{{JOB}}/checkpoints")
    for bad in ("abc", "-1", "1" + "0" * 20, "%D9%A5")
]
CASES += [
    Case(
        group=74,
        name=f"{action} a finished job",
        status=400,
        code="invalid_job_status",
        method="POST",
        target=f"{JOBS}/{{DONE_JOB}}/{action}",
    )
    for action in ("cancel", "pause", "resume")
]
CASES += [
    Case(
        group=74,
        name=f"{action} another project's job",
        status=404,
        code="fine_tune_not_found",
        param="fine_tune_id",
        method="POST",
        target=f"{JOBS}/{{OTHERS_JOB}}/{action}",
    )
    for action in ("cancel", "pause", "resume")
]
CASES += [
    Case(
        group=74,
        name=f"webhook to {url[:50]}",
        status=400,
        code="invalid_value",
        param="url",
        method="POST",
        target="/v1/webhook_endpoints",
        headers=(JSON,),
        body=json.dumps({"name": "x", "url": url, "event_types": ["fine_tuning.job.succeeded"]}).encode(),
    )
    for url in (
        *(url.replace("PORT", "8080") for url in HOSTILE_URLS),
        "",
        "hello",
        "https://10.0.0.1/",
        "https://[::1]/",
        "https://h/" + "x" * 3000,
    )
]
