"""Runs Python graders for requests that wait for them, a few at a time, each in a sandbox."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app.errors import Unavailable
from app.queue.base import VALIDATION_POOL
from app.resources import Resources
from app.services import grader_runs
from app.services.grader_runs import Claim
from app.settings import Settings
from worker.graders import sandbox
from worker.graders.faults import GraderFault
from worker.graders.sandbox import Limits, Sandbox

_log = logging.getLogger(__name__)
_AT_ONCE = 2
_LOOK_SECONDS = 1.0
_SWEEP_SECONDS = 60.0
_OUTAGE = (Unavailable, SQLAlchemyError, OSError)


async def find_sandbox(settings: Settings) -> Sandbox | None:
    """The sandbox of this machine, or None: then its worker runs no Python graders."""
    if not settings.python_graders:
        return None
    limits = Limits(settings.python_grader_seconds, settings.python_grader_memory_bytes)
    found = await sandbox.find(limits, way=settings.python_grader_sandbox, secret=settings.data)
    if found is not None:
        _log.info("Python graders are run under %s", found.way)
    return found


async def run(resources: Resources, *, owner: str, sandbox: Sandbox | None, draining: asyncio.Event) -> None:
    """Until the worker drains. Without a sandbox, only rows that nobody waits for are removed."""
    async with asyncio.TaskGroup() as tasks:
        sweeping = tasks.create_task(_sweep(resources))
        async with asyncio.TaskGroup() as working:
            for number in range(_AT_ONCE if sandbox is not None else 0):
                assert sandbox is not None
                working.create_task(_work(resources, f"{owner}/{number}", sandbox, draining))
            working.create_task(draining.wait())
        sweeping.cancel()


async def _sweep(resources: Resources) -> None:
    while True:
        try:
            async with resources.write() as session:
                await grader_runs.remove_expired(session)
        except _OUTAGE:
            _log.warning("the database does not answer; old grader runs are removed when it does", exc_info=True)
        await asyncio.sleep(_SWEEP_SECONDS)


async def _work(resources: Resources, owner: str, sandbox: Sandbox, draining: asyncio.Event) -> None:
    waiter = resources.queue.waiter(VALIDATION_POOL)
    ttl = resources.settings.lease_seconds
    try:
        while not draining.is_set():
            held = None
            try:
                async with resources.write() as session:
                    held = await grader_runs.claim(session, owner=owner, ttl_seconds=ttl)
            except _OUTAGE:
                _log.warning("the database does not answer; graders are run when it does", exc_info=True)
            if held is None:
                await waiter.wait(_LOOK_SECONDS)
            else:
                await _grade(resources, held, sandbox, draining)
    finally:
        waiter.close()


async def _grade(resources: Resources, held: Claim, sandbox: Sandbox, draining: asyncio.Event) -> None:
    """Ends early when the lease is lost or the worker leaves; then whoever holds the run next begins anew."""
    work = asyncio.create_task(_result(held, sandbox))
    ends = [asyncio.create_task(_until_lost(resources, held)), asyncio.create_task(draining.wait())]
    await asyncio.wait([work, *ends], return_when=asyncio.FIRST_COMPLETED)
    for task in (work, *ends):
        task.cancel()
    results = await asyncio.gather(work, *ends, return_exceptions=True)
    result = results[0]
    if isinstance(result, Exception):  # ours; the lease runs out, and the attempt counts
        _log.error("grader run %s failed", held.run_id, exc_info=result)
        return
    try:
        async with resources.write() as session:
            if isinstance(result, dict):
                await grader_runs.answer(session, held, result=result)
            else:
                await grader_runs.give_back(session, held)
    except _OUTAGE:  # the lease runs out, and another worker takes the run
        _log.warning("the database does not answer; a grader's run will be repeated", exc_info=True)


async def _result(held: Claim, sandbox: Sandbox) -> dict[str, Any]:
    request = held.request
    try:
        return {"reward": await sandbox.grade(request["source"], request["sample"], request["item"])}
    except GraderFault as fault:
        return {
            "sentence": fault.sentence,
            "flags": list(fault.flags),
            "server_error_type": fault.server_error_type,
        }
    except OSError:
        _log.exception("a sandbox could not be started")
        sentence = "The sandbox for Python graders could not be started."
        return {"sentence": sentence, "flags": ["python_grader_server_error"], "server_error_type": "sandbox_failed"}


async def _until_lost(resources: Resources, held: Claim) -> None:
    ttl = resources.settings.lease_seconds
    while True:
        await asyncio.sleep(min(_LOOK_SECONDS, ttl / 3))
        with suppress(*_OUTAGE):
            async with resources.write() as session:
                if not await grader_runs.renew(session, held, ttl_seconds=ttl):
                    return
