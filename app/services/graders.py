"""Graders: whether one makes sense, and what it gives a sample."""

import asyncio
import json
import time
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from app import outgoing
from app.auth import Principal
from app.errors import InvalidRequest, Unavailable
from app.services import grader_runs, workers
from app.settings import Settings
from worker.contract.graders import AnyGrader, LabelModel, Python, ScoreModel
from worker.graders import check as checks
from worker.graders.evaluate import Runners, evaluate
from worker.graders.faults import GraderFault
from worker.graders.outcome import Outcome
from worker.graders.templates import Context

_QUEUE_SECONDS = 30.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 0.5
_MAX_ANSWER_BYTES = 4 << 20
# The operator's own endpoint may be anywhere, this machine included.
_ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


class Sessions(Protocol):
    """Of `app.resources.Resources`: no session is open while something is waited for."""

    @property
    def settings(self) -> Settings: ...
    def read(self) -> AbstractAsyncContextManager[AsyncSession]: ...
    def write(self) -> AbstractAsyncContextManager[AsyncSession]: ...


@dataclass(frozen=True)
class Graded:
    outcome: Outcome
    seconds: float


async def validate(settings: Settings, grader: AnyGrader) -> None:
    """Raises InvalidRequest for a grader that can never give a reward, or that this server does not run."""
    _check_is_offered(settings, grader)
    try:
        await asyncio.to_thread(checks.check, grader)  # parsing takes a while
    except GraderFault as fault:
        raise InvalidRequest(fault.sentence, code=fault.flags[0], param="grader") from fault


async def run(sessions: Sessions, principal: Principal, *, grader: AnyGrader, sample: str, item: Any) -> Graded:
    """Grade one sample. What goes wrong on the way is in the outcome; InvalidRequest is for what the server does
    not offer, Unavailable for Python graders without a worker that runs them."""
    _check_is_offered(sessions.settings, grader)
    if any(isinstance(part, Python) for part in checks.parts(grader)):
        await _check_somebody_runs_python(sessions)
    began = time.perf_counter()
    runners = Runners(partial(_run_python, sessions, principal), partial(_ask, sessions.settings))
    outcome = await evaluate(grader, Context(sample, item), runners)
    return Graded(outcome, time.perf_counter() - began)


def _check_is_offered(settings: Settings, grader: AnyGrader) -> None:
    for part in checks.parts(grader):
        if isinstance(part, Python) and not settings.python_graders:
            raise InvalidRequest(
                "This server does not run Python graders: its operator has not set HONE_PYTHON_GRADERS.",
                code="python_graders_disabled",
                param="grader",
            )
        if isinstance(part, ScoreModel | LabelModel) and settings.grader_base_url is None:
            raise InvalidRequest(
                "This server has no model for graders: its operator has not set HONE_GRADER_BASE_URL.",
                code="model_graders_disabled",
                param="grader",
            )


async def _check_somebody_runs_python(sessions: Sessions) -> None:
    silent_seconds = sessions.settings.lease_seconds
    async with sessions.read() as session:
        able = await workers.living(session, workers.PYTHON_GRADERS, pool=None, silent_seconds=silent_seconds)
    if not able:
        message = "No worker runs Python graders at the moment: it needs HONE_PYTHON_GRADERS=true and a sandbox."
        raise Unavailable(message, retry_after_seconds=10)


async def _run_python(
    sessions: Sessions, principal: Principal, source: str, sample: dict[str, Any], item: Any
) -> float:
    """Have a worker do it: the API's process executes nothing of a client's."""
    await asyncio.to_thread(checks.source, source)
    lives_seconds = _QUEUE_SECONDS + 2 * sessions.settings.python_grader_seconds  # a worker may die once
    request = {"source": source, "sample": sample, "item": item}
    async with sessions.write() as session:
        run_id = await grader_runs.add(session, principal, request=request, lives_seconds=lives_seconds)
    try:
        found = await _wait_for(sessions, principal, run_id, lives_seconds)
    finally:  # also when a multi grader's other part has failed: then nobody waits for this one
        await asyncio.shield(_remove(sessions, principal, run_id))
    if found is None:
        sentence = "No worker has run the Python grader in time."
        raise GraderFault(sentence, "python_grader_server_error", server_error_type="no_answer")
    if "reward" in found:
        return found["reward"]
    raise GraderFault(found["sentence"], *found["flags"], server_error_type=found["server_error_type"])


async def _remove(sessions: Sessions, principal: Principal, run_id: str) -> None:
    with suppress(Unavailable):  # else a sweep removes it
        async with sessions.write() as session:
            await grader_runs.remove(session, principal, run_id=run_id)


async def _wait_for(sessions: Sessions, principal: Principal, run_id: str, seconds: float) -> dict[str, Any] | None:
    """Looks often at first: most graders take a tenth of a second. An outage of the database is waited out."""
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE_SECONDS
    while time.monotonic() < deadline:
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
        try:
            async with sessions.read() as session:
                found = await grader_runs.result(session, principal, run_id=run_id)
        except Unavailable:
            continue
        if found is not None:
            return found
    return None


async def _ask(settings: Settings, body: dict[str, Any]) -> tuple[int, bytes]:
    """Raises GraderFault where there is no answer."""
    assert settings.grader_base_url is not None
    key = settings.grader_api_key
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key.get_secret_value()}"
    try:
        answer = await outgoing.post(
            f"{settings.grader_base_url.rstrip('/')}/chat/completions",
            body=json.dumps(body).encode(),
            headers=headers,
            timeout_seconds=settings.grader_timeout_seconds,
            max_response_bytes=_MAX_ANSWER_BYTES,
            allowed_networks=_ANYWHERE,
        )
    except (outgoing.OutgoingRefused, outgoing.OutgoingFailed) as error:
        raise GraderFault(f"The model's server could not be asked: {error}", "model_grader_server_error") from error
    if not answer.is_whole:
        raise GraderFault("The model's server answered with far too much.", "model_grader_server_error")
    # What it answers is told to clients, also why it refuses; some servers repeat the key that they refuse.
    return answer.status, answer.body.replace(key.get_secret_value().encode(), b"[redacted]") if key else answer.body
