"""/v1/fine_tuning/jobs through the official client."""

from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError
from starlette.types import Message, Receive, Scope, Send

from app.db.models import Job, JobStatus
from app.db.queries import scoped
from app.main import create_app
from app.resources import Resources
from tests import factories
from tests.conftest import Tenant


async def test_create_answers_as_openai_does(tenant: Tenant) -> None:
    training = await tenant.client.files.create(file=("train.jsonl", factories.jsonl()), purpose="fine-tune")
    validation = await tenant.client.files.create(file=("valid.jsonl", factories.jsonl()), purpose="fine-tune")

    job = await tenant.client.fine_tuning.jobs.create(
        model=factories.BASE_MODEL,
        training_file=training.id,
        validation_file=validation.id,
        suffix="my-model",
        seed=42,
        metadata={"team": "search"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
    )

    assert job.id.startswith("ftjob-")
    assert job.status == "validating_files"
    assert (job.training_file, job.validation_file) == (training.id, validation.id)
    assert (job.seed, job.metadata, job.error, job.result_files) == (42, {"team": "search"}, None, [])
    assert job.organization_id == tenant.principal.organization_id
    assert job.hyperparameters.to_dict() == {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert job.method is not None
    assert job.method.type == "supervised"
    assert job.to_dict()["user_provided_suffix"] == "my-model"
    assert job.integrations == []
    assert await tenant.client.fine_tuning.jobs.retrieve(job.id) == job
    events = [event async for event in tenant.client.fine_tuning.jobs.list_events(job.id)]
    assert [event.message for event in events] == [
        f"Validating training file: {training.id} and validation file: {validation.id}",
        f"Created fine-tuning job: {job.id}",
    ]
    assert all((event.level, event.type, event.data) == ("info", "message", {}) for event in events)


async def test_the_row_is_committed_before_the_answer_leaves(resources: Resources) -> None:
    principal, key = await factories.project(resources)
    await factories.base_model(resources)
    training = await factories.file(resources, principal)
    app = create_app(resources)
    seen: list[JobStatus] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def look_then_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                async with resources.read() as session:  # another connection than the route's
                    seen.extend(job.status for job in await session.scalars(scoped(Job, principal)))
            await send(message)

        await app(scope, receive, look_then_send)

    headers = {"Authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(watched)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
        body = {"model": factories.BASE_MODEL, "training_file": training.id}
        job = (await http.post("/v1/fine_tuning/jobs", json=body)).json()
        assert seen == [JobStatus.VALIDATING_FILES]
        await http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        assert seen == [JobStatus.VALIDATING_FILES, JobStatus.CANCELLED]


async def test_older_clients_give_hyperparameters_at_the_top(tenant: Tenant) -> None:
    training = await factories.file(tenant.resources, tenant.principal)
    job = await tenant.client.fine_tuning.jobs.create(
        model=factories.BASE_MODEL,
        training_file=training.id,
        hyperparameters={"n_epochs": 4, "learning_rate_multiplier": 2},
    )
    assert job.hyperparameters.to_dict() == {"n_epochs": 4, "batch_size": "auto", "learning_rate_multiplier": 2.0}
    assert 0 <= job.seed < 2**31


@pytest.mark.parametrize(
    ("older", "chosen", "agreed"),
    [
        ({"n_epochs": 4}, {"batch_size": 8}, (4, 8, "auto")),
        ({"n_epochs": 4, "batch_size": "auto"}, {"n_epochs": "auto", "batch_size": 8}, (4, 8, "auto")),
        ({"n_epochs": 4}, {"n_epochs": 4, "learning_rate_multiplier": 2}, (4, "auto", 2.0)),
        ({"n_epochs": None}, None, ("auto", "auto", "auto")),
    ],
)
async def test_both_places_of_hyperparameters_are_read_as_one(
    tenant: Tenant, older: Any, chosen: Any, agreed: tuple[object, ...]
) -> None:
    training = await factories.file(tenant.resources, tenant.principal)
    job = await tenant.client.fine_tuning.jobs.create(
        model=factories.BASE_MODEL,
        training_file=training.id,
        hyperparameters=older,
        method={"type": "supervised", "supervised": {"hyperparameters": chosen}},
    )
    hyperparameters = job.hyperparameters
    found = (hyperparameters.n_epochs, hyperparameters.batch_size, hyperparameters.learning_rate_multiplier)
    assert found == agreed


async def test_every_field_of_the_official_client_at_once(tenant: Tenant) -> None:
    """All three methods' blocks, of which the two that are not chosen need not even be valid."""
    training = await factories.file(tenant.resources, tenant.principal)
    auto: Any = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"}
    for method in ("supervised", "dpo"):
        job = await tenant.client.fine_tuning.jobs.create(
            model=factories.BASE_MODEL,
            training_file=training.id,
            validation_file=training.id,
            hyperparameters=auto,
            integrations=None,
            metadata={"foo": "string"},
            method={
                "type": method,
                "supervised": {"hyperparameters": auto | {"n_epochs": 3 if method == "supervised" else "many"}},
                "dpo": {"hyperparameters": auto | {"beta": 0.5 if method == "dpo" else -1}},
                "reinforcement": {"grader": 7, "hyperparameters": None},  # pyright: ignore[reportArgumentType]
            },
            seed=2**31 - 1,
            suffix="x" * 64,
        )
        assert job.method is not None
        assert job.method.type == method
        assert job.hyperparameters.n_epochs == (3 if method == "supervised" else None)
        assert job.seed == 2**31 - 1


async def test_whole_numbers_may_be_written_as_floats(tenant: Tenant) -> None:
    """As clients do whose language has one kind of number."""
    training = await factories.file(tenant.resources, tenant.principal)
    asked = {"n_epochs": 3.0, "batch_size": 8.0, "learning_rate_multiplier": 2}
    async with tenant.http() as http:
        body = {"model": factories.BASE_MODEL, "training_file": training.id, "seed": 7.0, "hyperparameters": asked}
        job = (await http.post("/v1/fine_tuning/jobs", json=body)).json()
        upload = {"bytes": 7.0, "filename": "a", "mime_type": "a", "purpose": "batch"}
        policy = {"anchor": "created_at", "seconds": 3600.0}
        assert (await http.post("/v1/uploads", json={**upload, "expires_after": policy})).status_code == 200
    assert job["hyperparameters"] == asked
    assert [type(job["hyperparameters"][name]) for name in asked] == [int, int, float]
    assert (job["seed"], type(job["seed"])) == (7, int)


@pytest.mark.parametrize("suffix", ["Customer support, v2", "a/b:c", "客服", "🦊", "x" * 64])
async def test_a_suffix_is_any_text(tenant: Tenant, suffix: str) -> None:
    training = await factories.file(tenant.resources, tenant.principal)
    job = await tenant.client.fine_tuning.jobs.create(
        model=factories.BASE_MODEL, training_file=training.id, suffix=suffix
    )
    assert job.to_dict()["user_provided_suffix"] == suffix


async def test_blocks_of_other_methods_are_ignored(tenant: Tenant) -> None:
    training = await factories.file(tenant.resources, tenant.principal)
    job = await tenant.client.fine_tuning.jobs.create(
        model=factories.BASE_MODEL,
        training_file=training.id,
        method={
            "type": "supervised",
            "dpo": {"hyperparameters": {"beta": "auto"}},
            "supervised": {"hyperparameters": {"batch_size": 8}},
        },
    )
    assert job.hyperparameters.batch_size == 8


async def test_a_dpo_job_shows_its_hyperparameters_in_its_method(tenant: Tenant) -> None:
    """In the client's strict mode."""
    training = await factories.file(tenant.resources, tenant.principal)
    job = await tenant.client.fine_tuning.jobs.create(
        model=factories.BASE_MODEL,
        training_file=training.id,
        method={
            "type": "dpo",
            "supervised": {"hyperparameters": {"n_epochs": 51}},
            "dpo": {"hyperparameters": {"beta": 2, "n_epochs": 1}},
        },
    )
    assert job.hyperparameters.to_dict() == {}
    assert job.method is not None
    assert job.method.to_dict() == {
        "type": "dpo",
        "dpo": {
            "hyperparameters": {
                "n_epochs": 1,
                "batch_size": "auto",
                "learning_rate_multiplier": "auto",
                "beta": 2.0,
            }
        },
    }
    assert await tenant.client.fine_tuning.jobs.retrieve(job.id) == job
    defaults = await tenant.client.fine_tuning.jobs.create(
        model=factories.BASE_MODEL, training_file=training.id, method={"type": "dpo"}
    )
    assert defaults.method is not None
    assert defaults.method.dpo is not None
    assert defaults.method.dpo.hyperparameters is not None
    assert defaults.method.dpo.hyperparameters.beta == "auto"


async def test_jobs_are_listed_newest_first_and_by_cursor(tenant: Tenant) -> None:
    made = [(await factories.job(tenant.resources, tenant.principal)).id for _ in range(25)]
    first = await tenant.client.fine_tuning.jobs.list()
    assert [job.id for job in first.data] == made[::-1][:20]
    assert first.has_more
    assert [job.id async for job in tenant.client.fine_tuning.jobs.list(limit=4)] == made[::-1]
    last = await tenant.client.fine_tuning.jobs.list(after=made[5])
    assert [job.id for job in last.data] == made[4::-1]
    assert not last.has_more


async def test_parameters_without_a_value_are_none(tenant: Tenant) -> None:
    job = await factories.job(tenant.resources, tenant.principal)
    await factories.add_events(tenant.resources, job.id, 25)
    jobs = f"/v1/fine_tuning/jobs/{job.id}"
    async with tenant.http() as http:
        for path, num_items in (
            ("/v1/fine_tuning/jobs?after=&limit=", 1),
            (f"{jobs}/events?after=&limit=&stream=", 20),
            (f"{jobs}/checkpoints?after=&limit=", 0),
            ("/v1/files?after=&limit=&order=&purpose=", 0),
            ("/v1/webhook_endpoints?after=&limit=", 0),
        ):
            answer = await http.get(path)
            assert (answer.status_code, len(answer.json()["data"])) == (200, num_items), path


async def test_jobs_are_found_by_metadata(tenant: Tenant) -> None:
    both = await factories.job(tenant.resources, tenant.principal, job_metadata={"team": "a", "it's": "x.y"})
    empty = await factories.job(tenant.resources, tenant.principal, job_metadata={"team": ""})
    without = await factories.job(tenant.resources, tenant.principal, job_metadata=None)
    jobs = tenant.client.fine_tuning.jobs

    assert [job.id async for job in jobs.list(metadata={"team": "a", "it's": "x.y"})] == [both.id]
    assert [job.id async for job in jobs.list(metadata={"team": ""})] == [empty.id]
    assert [job.id async for job in jobs.list(metadata={"team": "b"})] == []
    for null in ("null", ""):  # the latter is the Node client's way to write it
        assert [job.id async for job in jobs.list(extra_query={"metadata": null})] == [without.id]
    with pytest.raises(BadRequestError) as refused:
        await jobs.list(metadata={'"': "x"})
    assert refused.value.param == "metadata"


async def test_cancel_is_final_and_may_be_repeated(tenant: Tenant) -> None:
    row = await factories.job(
        tenant.resources,
        tenant.principal,
        status=JobStatus.RUNNING,
        lease_owner="w1/0",
        lease_expires_at=factories.utc_now(),
        claimed_from=JobStatus.QUEUED,
        fence=3,
    )
    cancelled = await tenant.client.fine_tuning.jobs.cancel(row.id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    async with tenant.resources.read() as session:
        after = (await session.scalars(scoped(Job, tenant.principal).where(Job.id == row.id))).one()
    assert (after.fence, after.lease_owner, after.lease_expires_at, after.claimed_from) == (4, None, None, None)

    again = await tenant.client.fine_tuning.jobs.cancel(row.id)
    assert again == cancelled
    events = await tenant.client.fine_tuning.jobs.list_events(row.id)
    assert [event.message for event in events.data] == ["The job has been cancelled"]


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED])
async def test_a_job_that_has_ended_cannot_be_cancelled(tenant: Tenant, status: JobStatus) -> None:
    row = await factories.job(tenant.resources, tenant.principal, status=status)
    with pytest.raises(BadRequestError) as refused:
        await tenant.client.fine_tuning.jobs.cancel(row.id)
    assert refused.value.type == "invalid_request_error"
    assert f"has already {status}" in refused.value.message


async def test_a_failed_job_says_why(tenant: Tenant) -> None:
    error = {"code": "invalid_n_examples", "message": "Training file has 7 example(s)", "param": "training_file"}
    row = await factories.job(tenant.resources, tenant.principal, status=JobStatus.FAILED, error=error)
    job = await tenant.client.fine_tuning.jobs.retrieve(row.id)
    assert job.error is not None
    assert job.error.to_dict() == error


async def test_events_are_listed_newest_first_and_by_cursor(tenant: Tenant) -> None:
    row = await factories.job(tenant.resources, tenant.principal)
    await factories.add_events(tenant.resources, row.id, 45)
    first = await tenant.client.fine_tuning.jobs.list_events(row.id)
    assert [event.message.split(":")[0] for event in first.data] == [f"Step {n}/45" for n in range(45, 25, -1)]
    assert first.has_more
    walked = [event async for event in tenant.client.fine_tuning.jobs.list_events(row.id)]
    assert [event.message.split(":")[0] for event in walked] == [f"Step {n}/45" for n in range(45, 0, -1)]
    assert walked[0].type == "metrics"
    assert walked[0].data == {
        "step": 45,
        "total_steps": 45,
        "train_loss": 0.5,
        "train_mean_token_accuracy": 0.9,
    }


async def test_a_succeeded_job_names_its_model_and_results(tenant: Tenant) -> None:
    row, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    job = await tenant.client.fine_tuning.jobs.retrieve(row.id)
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == ("succeeded", model.id, 1234)
    metrics, adapter = [await tenant.client.files.retrieve(file_id) for file_id in job.result_files]
    assert (metrics.filename, metrics.purpose) == ("step_metrics.csv", "fine-tune-results")
    assert adapter.filename == "adapter.zip"
    assert (await tenant.client.files.content(metrics.id)).text.startswith("step,train_loss,train_accuracy,")
    assert job.to_dict()["hone"] == {
        "status": "succeeded",
        "requested_model": "hone-tiny",
        "current_step": 36,
        "total_steps": 36,
        "requested": None,
        "spec": row.spec,
        "dataset": {"training": {"examples": 12}},
        "trackers": [],
    }


async def test_jobs_of_another_project_do_not_exist(tenant: Tenant, other_tenant: Tenant) -> None:
    row, _ = await factories.succeeded_job(tenant.resources, tenant.principal)
    theirs = other_tenant.client.fine_tuning.jobs
    for call in (theirs.retrieve, theirs.cancel, theirs.list_events, theirs.checkpoints.list):
        with pytest.raises(NotFoundError) as missing:
            await call(row.id)
        assert missing.value.body == {
            "message": f"Could not find fine tune: {row.id}",
            "type": "invalid_request_error",
            "param": "fine_tune_id",
            "code": "fine_tune_not_found",
        }
    assert (await theirs.list()).data == []
    training = await factories.file(tenant.resources, tenant.principal)
    with pytest.raises(BadRequestError) as refused:
        await theirs.create(model=factories.BASE_MODEL, training_file=training.id)
    assert (refused.value.param, refused.value.code) == ("training_file", "file_not_found")
