"""What must be true of a job to which something happened."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import PurePosixPath

import boto3
from botocore.config import Config
from openai import OpenAI
from sqlalchemy import select

from app.db.models import Event, Job
from app.resources import open_resources
from app.settings import Settings
from tests import factories
from tests.e2e.processes import TERMINAL, Installation, Process, messages, metrics, wait_for, wait_for_end

Install = Callable[..., Installation]
Recovered = Callable[[float], None]
LEASE_SECONDS = 3.0
RESUMED, DONE = "Fine-tuning job resumed", "The job has successfully completed"


def assert_as_undisturbed(client: OpenAI, job_id: str, undisturbed: list[str]) -> None:
    """The same figures step for step, nothing told twice, one end and one model."""
    job = wait_for_end(client, job_id)
    assert metrics(client, job) == undisturbed
    told = messages(client, job_id)
    steps = Counter(message.split(":")[0] for message in told if message.startswith("Step "))
    assert len(steps) == len(undisturbed) - 1
    assert set(steps.values()) == {1}
    assert (told.count(DONE), told[-1]) == (1, DONE)
    assert len([model for model in client.models.list() if model.id == job.fine_tuned_model]) == 1
    assert sum(message.startswith("New fine-tuned model created") for message in told) == 1


def wait_until_ready(api: Process, *, workers: int) -> None:
    """Until that many have done their trainers' imports, before which none claims a job."""

    def all_ready() -> bool:
        with api.http() as http:
            listed = http.get("/v1/admin/workers").json()["data"]
        return [worker["state"] for worker in listed] == ["ready"] * workers

    wait_for(all_ready, seconds=60)


def holder(api: Process, job_id: str, *workers: Process) -> Process:
    """The one of these workers that trains the job."""
    with api.http() as http:
        listed = http.get("/v1/admin/workers").json()["data"]
    (pid,) = [worker["pid"] for worker in listed if any(slot["job_id"] == job_id for slot in worker["slots"])]
    return next(worker for worker in workers if worker.pid == pid)


def seconds_until_resumed(client: OpenAI, job_id: str) -> float:
    """From now until the job is resumed for the first time."""
    began = time.monotonic()
    wait_for(lambda: RESUMED in messages(client, job_id), seconds=90)
    return time.monotonic() - began


def assert_cancelled(client: OpenAI, job_id: str) -> None:
    """Nothing was made, nothing was said afterwards, and saying it again changes nothing."""
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.fine_tuned_model, job.result_files) == ("cancelled", None, [])
    assert client.fine_tuning.jobs.cancel(job_id) == job
    told = messages(client, job_id)
    assert told[-1] == "The job has been cancelled"
    assert told.count(told[-1]) == 1


def assert_numbered(installation: Installation, job_id: str) -> None:
    """Events have numbers without gaps, and of a terminal status there is one."""
    job, events = stored(installation, job_id)
    assert [event.sequence for event in events] == list(range(1, job.event_sequence + 1))
    assert job.status in TERMINAL
    assert job.lease_owner is None


def stored(installation: Installation, job_id: str) -> tuple[Job, list[Event]]:
    """The job and its events as the database has them."""

    async def read() -> tuple[Job, list[Event]]:
        settings = installation.as_settings().model_copy(update={"redis_url": None})
        async with open_resources(settings) as resources, resources.read() as session:
            job = (await session.scalars(select(Job).where(Job.id == job_id))).one()
            events = await session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.sequence))
            return job, list(events)

    return asyncio.run(read())


@contextmanager
def watching_objects(installation: Installation, job_id: str) -> Iterator[Callable[[str], bool]]:
    """Gives a question: whether the job's runs have stored an object whose key, below the job's, is of a pattern.

    It is quick, so that a short moment can be met.
    """
    bucket = installation.settings.get("HONE_S3_BUCKET")
    if bucket is None:
        yield lambda pattern: any((installation.data / "objects" / "projects").glob(f"*/jobs/{job_id}/{pattern}"))
        return
    client = boto3.client(
        "s3",
        endpoint_url=installation.settings["HONE_S3_ENDPOINT_URL"],
        region_name=installation.settings["HONE_S3_REGION"],
        aws_access_key_id=installation.settings["HONE_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=installation.settings["HONE_S3_SECRET_ACCESS_KEY"],
        config=Config(s3={"addressing_style": "path"}),
    )

    def is_there(pattern: str) -> bool:
        found = client.list_objects_v2(Bucket=bucket, Prefix="projects/").get("Contents", [])
        return any(PurePosixPath(one["Key"]).match(f"projects/*/jobs/{job_id}/{pattern}") for one in found)

    with closing(client):
        yield is_there


def add_queued_job(settings: Settings) -> str:
    """A job that waits for a slot, without files."""

    async def add() -> str:
        async with open_resources(settings) as resources:
            principal, _ = await factories.project(resources)
            await factories.base_model(resources)
            return (await factories.job(resources, principal)).id

    return asyncio.run(add())
