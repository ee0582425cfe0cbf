"""`hone doctor`: what this machine has and lacks, in plain words."""

import asyncio
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app import environment, secret_upkeep
from app.db import migrations
from app.db.models import BaseModel, BaseModelFile
from app.resources import Resources, open_queue, open_resources, open_storage
from app.services import base_models
from app.services.sealed_secrets import Seal
from app.settings import Settings
from app.storage import trial
from app.storage.base import ObjectCorrupt, ObjectMissing, Storage, StorageUnavailable
from worker.data import base_model_source

_LOW_DISK_BYTES = 5 * 1024**3
_ASK_TORCH = """
import torch
gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
print(torch.__version__, "|", ", ".join(gpus))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` is set when something is wrong."""

    subject: str
    state: str
    advice: str | None = None


async def examine(settings: Settings) -> list[Finding]:
    findings = [_python(), *_torch(), _disk(settings)]
    findings.append(await _storage(settings))
    schema = await asyncio.to_thread(_schema, settings)
    findings.append(schema)
    findings.append(await _queue(settings))
    if schema.advice is None:
        async with open_resources(settings) as resources:
            findings.extend([finding async for finding in _bases(resources)])
            findings.append(await _secrets(resources))
    return findings


def _python() -> Finding:
    version = sys.version.split()[0]
    return Finding("Python", version, None if sys.version_info >= (3, 11) else "Hone needs Python 3.11 or newer.")


def _torch() -> Iterator[Finding]:
    """Asked in a child process: torch takes seconds and half a gigabyte to import."""
    if importlib.util.find_spec("torch") is None:
        advice = "This machine can serve the API but not train. Install the worker: pip install 'hone[worker]'"
        yield Finding("PyTorch", "not installed", advice)
        return
    answer = subprocess.run(
        [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False, env=environment.for_a_child()
    )
    if answer.returncode != 0:
        yield Finding("PyTorch", "does not load", answer.stderr.strip().splitlines()[-1])
        return
    version, _, gpus = answer.stdout.strip().partition("|")
    yield Finding("PyTorch", version.strip())
    gpu_advice = None
    if not gpus.strip() and Path("/proc/driver/nvidia").exists():
        gpu_advice = "There is an NVIDIA driver, but this PyTorch cannot use it: is it a CPU build?"
    yield Finding(
        "CUDA", gpus.strip() or "no GPU: training runs on the CPU, which is right for small models only", gpu_advice
    )
    missing = [name for name in ("transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("Training libraries", f"missing: {', '.join(missing)}", "pip install 'hone[worker]'")


def _disk(settings: Settings) -> Finding:
    place = settings.data
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    advice = "That is little: checkpoints and base models need room." if free < _LOW_DISK_BYTES else None
    return Finding("Disk", f"{free / 1024**3:.1f} GiB free at {settings.data}", advice)


async def _storage(settings: Settings) -> Finding:
    place = f"S3 bucket {settings.s3_bucket}" if settings.s3_bucket else str(settings.data / "objects")
    try:
        async with open_storage(settings) as storage:
            await trial.run(storage)
    except (OSError, ObjectMissing, ObjectCorrupt) as error:
        return Finding("Storage", place, f"An object could not be written, read and deleted: {error}")
    return Finding("Storage", f"{place}: an object was written, read and deleted")


def _schema(settings: Settings) -> Finding:
    try:
        migrations.require_current(settings.resolved_database_url)
    except (migrations.OldSchema, migrations.NoDatabase) as error:
        return Finding("Database", "not ready", str(error))
    return Finding("Database", "up to date")


async def _queue(settings: Settings) -> Finding:
    if settings.redis_url is None:
        return Finding("Queue", "within each process; processes find each other's work once a second")
    async with open_queue(settings) as queue:
        problem = await queue.problem()
    advice = "Jobs begin up to a second later without it. Look at HONE_REDIS_URL and at the Redis server."
    return Finding("Queue", f"Redis: {problem}", advice) if problem else Finding("Queue", "Redis answers")


async def _secrets(resources: Resources) -> Finding:
    count = await secret_upkeep.run(resources, Seal.NOTHING)
    state = f"those of {count.seen} webhook endpoints"
    if count.unreadable:
        advice = "Add the key that they were sealed with to HONE_SECRET_KEYS; until then their deliveries wait."
        return Finding("Secrets", f"{state}, {count.unreadable} of which no key opens", advice)
    if not resources.sealer.can_seal:
        return Finding("Secrets", f"{state}; without HONE_SECRET_KEYS nobody can make a webhook endpoint")
    return Finding("Secrets", f"{state}, which can be read")


async def _bases(resources: Resources) -> AsyncIterator[Finding]:
    async with resources.read() as session:
        registered = [(base, await base_models.files(session, base.id)) for base in await base_models.search(session)]
    if not registered:
        yield Finding("Base models", "none", "Register one: hone models add ID --source DIRECTORY_OR_HUB_REPOSITORY")
    for base, files in registered:
        size = f"{base.num_parameters / 1e6:.1f} million parameters, context {base.context_tokens}"
        problem = await _lacking(resources.storage, files) if files else await asyncio.to_thread(_base_problem, base)
        yield Finding(f"Base model {base.id}", size, problem)


async def _lacking(storage: Storage, files: Sequence[BaseModelFile]) -> str | None:
    """Whether all of a base's files that are objects are in storage. Their hashes are checked by who fetches them."""
    for file in files:
        if file.storage_key is None:
            continue  # on the hub; fetched when a job needs it
        try:
            found = await storage.stat(file.storage_key)
        except ObjectMissing:
            return f"{file.name} is missing in storage; no worker can get it."
        except StorageUnavailable as error:
            return f"Storage does not say whether it has it: {error}"
        if found.bytes != file.bytes:
            return f"{file.name} is damaged in storage: it has {found.bytes} bytes instead of {file.bytes}."
    return None


def _base_problem(base: BaseModel) -> str | None:
    """Of a base that was registered before its files went into storage."""
    if not base.source.startswith("/"):
        return None  # on the hub; fetched when a job needs it
    if not Path(base.source).is_dir():
        return f"It is neither in storage nor here: {base.source}. Add it again on the machine that has it."
    try:
        base_model_source.inspect(Path(base.source), base.revision)
    except base_model_source.BadBaseModel as error:
        return str(error)
    return None
