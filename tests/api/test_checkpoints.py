"""Checkpoints and adapters."""

from app.db.models import JobStatus
from tests import factories
from tests.conftest import Tenant


async def test_checkpoints_are_listed_newest_first_and_by_cursor(tenant: Tenant) -> None:
    job = await factories.job(tenant.resources, tenant.principal, status=JobStatus.RUNNING)
    made = [await factories.checkpoint(tenant.resources, job, step=step) for step in range(1, 13)]
    newest_first = [checkpoint.id for checkpoint in made[::-1]]

    first = await tenant.client.fine_tuning.jobs.checkpoints.list(job.id)
    assert [checkpoint.id for checkpoint in first.data] == newest_first[:10]
    assert first.has_more
    assert (first.to_dict()["first_id"], first.to_dict()["last_id"]) == (newest_first[0], newest_first[9])
    walked = [c async for c in tenant.client.fine_tuning.jobs.checkpoints.list(job.id, limit=5)]
    assert [checkpoint.id for checkpoint in walked] == newest_first

    newest = walked[0]
    assert newest.fine_tuned_model_checkpoint == made[-1].model_name
    assert (newest.fine_tuning_job_id, newest.step_number) == (job.id, 12)
    assert (newest.metrics.step, newest.metrics.train_loss, newest.metrics.valid_loss) == (12, 0.25, None)


async def test_no_checkpoints_are_an_empty_list(tenant: Tenant) -> None:
    job = await factories.job(tenant.resources, tenant.principal)
    page = await tenant.client.fine_tuning.jobs.checkpoints.list(job.id)
    assert page.to_dict() == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_adapters_are_downloaded_from_jobs_and_checkpoints(tenant: Tenant, other_tenant: Tenant) -> None:
    job, _ = await factories.succeeded_job(tenant.resources, tenant.principal)
    checkpoint = await factories.checkpoint(tenant.resources, job, step=12)
    base = f"/v1/fine_tuning/jobs/{job.id}"
    async with tenant.http() as http:
        adapter = await http.get(f"{base}/adapter")
        at_step = await http.get(f"{base}/checkpoints/{checkpoint.id}/adapter")
        part = await http.get(f"{base}/adapter", headers={"Range": "bytes=4-10"})
        missing = await http.get(f"{base}/checkpoints/ftckpt_unknown/adapter")
    assert adapter.content == b"the adapter" * 1000
    assert job.id in adapter.headers["content-disposition"]
    assert at_step.content == b"adapter at step 12"
    assert (part.status_code, part.content) == (206, b"adapter")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "checkpoint_not_found")
    async with other_tenant.http() as http:
        for path in (f"{base}/adapter", f"{base}/checkpoints/{checkpoint.id}/adapter"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "fine_tune_not_found")


async def test_a_job_under_way_has_no_adapter_and_says_so(tenant: Tenant) -> None:
    job = await factories.job(tenant.resources, tenant.principal)
    async with tenant.http() as http:
        answer = await http.get(f"/v1/fine_tuning/jobs/{job.id}/adapter")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == f"Job {job.id} has made no model: its status is queued."
