"""The end of a job: its files, and what its model is called."""

import base64
from pathlib import Path

import pytest

from app.auth import Principal
from app.db.models import Checkpoint as CheckpointRow
from app.db.models import File, FineTunedModel, Job, JobStatus
from app.db.queries import of_job, of_project
from app.resources import Resources, open_resources
from app.services import jobs
from app.storage import verified
from app.storage.base import StoredObject
from tests import factories
from tests.backends import Site
from tests.worker.test_relay import checkpoint, make_relay, step
from worker import checkpoints, publish


@pytest.mark.parametrize(
    ("suffix", "part"),
    [
        ("my-model_2.0", "my-model_2.0"),
        ("Customer support, v2", "Customer-support-v2"),
        ("a/b:c\n", "a-b-c"),
        ("Schöne neue Welt!", "Schone-neue-Welt"),
        ("客服", ""),
        ("客服 bot", "bot"),
        ("㎢" * 64, ("km2" * 22)[:64]),
        ("", ""),
    ],
)
def test_any_suffix_has_its_form_in_a_name(suffix: str, part: str) -> None:
    assert checkpoints.name_part(suffix) == part


@pytest.mark.parametrize("is_encoded", [False, True])
async def test_the_table_of_figures_may_be_base64_text(site: Site, tmp_path: Path, is_encoded: bool) -> None:
    async with open_resources(site.settings(result_files_base64=is_encoded)) as resources:
        relay = await make_relay(resources, tmp_path)
        relay.take(step(1))
        relay.take(checkpoint(tmp_path, 1).model_copy(update={"is_last": True}))
        await relay.drain()
        adapter = tmp_path / "result"
        adapter.mkdir()
        await publish.succeed(resources, relay.lease, adapter_directory=adapter, last_step=1)
        async with resources.read() as session:
            job = await session.get_one(Job, relay.lease.job_id)
            file = await session.get_one(File, job.result_file_ids[0])
        stored = StoredObject(file.storage_key, file.bytes, file.sha256)
        content = b"".join([chunk async for chunk in verified.read(resources.storage, stored)])
    assert (file.filename, file.bytes) == ("step_metrics.csv", len(content))
    table = base64.b64decode(content, validate=True) if is_encoded else content
    assert table.startswith(b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    assert table.splitlines()[1].startswith(b"1,1.00000,0.50000,,,")


async def test_the_checkpoint_of_the_last_step_taken_names_the_model(resources: Resources, tmp_path: Path) -> None:
    relay = await make_relay(resources, tmp_path)  # three steps are planned
    relay.take(step(1))
    relay.take(checkpoint(tmp_path, 1))
    relay.take(step(2))
    relay.take(checkpoint(tmp_path, 2).model_copy(update={"is_last": True}))
    await relay.drain()
    adapter = tmp_path / "result"
    adapter.mkdir()
    (adapter / "weights").write_bytes(b"adapter")
    await publish.succeed(resources, relay.lease, adapter_directory=adapter, last_step=2)
    async with resources.read() as session:
        job = await session.get_one(Job, relay.lease.job_id)
        names = {row.step: row.model_name for row in await session.scalars(of_job(CheckpointRow, job.id))}
        model = await session.get_one(FineTunedModel, names[2])
    assert job.status == JobStatus.SUCCEEDED
    assert names[1].endswith(":ckpt-step-1")
    assert ":ckpt-step-" not in names[2]
    assert (job.fine_tuned_model, model.job_id, job.trained_tokens) == (names[2], job.id, 200)


async def test_what_is_finished_while_it_is_paused_waits_for_its_owner(resources: Resources, tmp_path: Path) -> None:
    relay = await make_relay(resources, tmp_path)
    relay.take(step(1))
    relay.take(checkpoint(tmp_path, 1).model_copy(update={"is_last": True}))
    await relay.drain()
    adapter = tmp_path / "result"
    adapter.mkdir()
    (adapter / "weights").write_bytes(b"adapter")
    async with resources.write() as session:
        job = await session.get_one(Job, relay.lease.job_id)
        principal = Principal("key", job.project_id, job.organization_id)
        await jobs.pause(session, principal, job_id=job.id)
    before = await factories.objects(resources)
    await publish.succeed(resources, relay.lease, adapter_directory=adapter, last_step=1)
    async with resources.read() as session:
        job = await session.get_one(Job, relay.lease.job_id)
        models = list(await session.scalars(of_project(FineTunedModel, job.project_id)))
    assert (job.status, job.lease_owner, job.fine_tuned_model, job.result_file_ids) == ("paused", None, None, [])
    assert (job.trained_tokens, job.estimated_finish_at, models) == (None, None, [])
    assert await factories.objects(resources) == before
