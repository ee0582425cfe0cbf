"""The `hone` object of a job's request, and jobs that continue from a model, through the official client."""

import json
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError
from openai.types.fine_tuning import FineTuningJob

from app.db.models import Job
from app.db.queries import scoped
from tests import factories
from tests.conftest import Tenant

ADAPTER = {"rank": 32, "alpha": 16, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"], "rslora": True}
EVERYTHING: dict[str, Any] = {
    "adapter": {**ADAPTER, "dora": False},
    "quantization": "nf4",
    "learning_rate": 2e-4,
    "schedule": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "max_gradient_norm": 0.3,
    "max_sequence_tokens": 512,
    "eval_interval_steps": 5,
    "checkpoint_interval_steps": 10,
    "keep_checkpoint_epochs": 5,
    "early_stopping": {"patience": 3},
    "keep_best": True,
    "neftune_noise_alpha": 5,
    "train_on_last_turn_only": True,
}


async def create(tenant: Tenant, hone: Any, *, model: str = factories.BASE_MODEL, **fields: Any) -> FineTuningJob:
    training = await factories.file(tenant.resources, tenant.principal)
    return await tenant.client.fine_tuning.jobs.create(
        model=model, training_file=training.id, extra_body={"hone": hone}, **fields
    )


async def test_what_was_asked_is_echoed_as_it_was_sent(tenant: Tenant) -> None:
    validation = await factories.file(tenant.resources, tenant.principal)
    job = await create(tenant, EVERYTHING, validation_file=validation.id)
    assert details(job)["requested"] == EVERYTHING
    assert details(job)["spec"] is None
    assert await tenant.client.fine_tuning.jobs.retrieve(job.id) == job
    for nothing in ({}, {"adapter": {}}):
        assert details(await create(tenant, nothing))["requested"] == nothing


_BAD: list[tuple[Any, str, str]] = [
    (5, "hone", "expected an object"),
    ([], "hone", "expected an object"),
    ({"adaptor": {}}, "hone.adaptor", "Unknown parameter: 'hone.adaptor'"),
    ({"adapter": {"rnak": 8}}, "hone.adapter.rnak", "Unknown parameter: 'hone.adapter.rnak'"),
    ({"early_stopping": {"patience": 1, "min_delta": 0.1}}, "hone.early_stopping.min_delta", "Unknown parameter"),
    ({"adapter": None}, "hone.adapter", "but got null"),
    ({"adapter": {"rank": "16"}}, "hone.adapter.rank", "expected an integer, but got a string"),
    ({"adapter": {"rank": True}}, "hone.adapter.rank", "but got a boolean"),
    ({"adapter": {"rank": 16.0}}, "hone.adapter.rank", "an integer"),
    ({"adapter": {"rank": 0}}, "hone.adapter.rank", "greater than or equal to 1"),
    ({"adapter": {"rank": 10**30}}, "hone.adapter.rank", "less than or equal to 512"),
    ({"adapter": {"dropout": 1}}, "hone.adapter.dropout", "less than 1"),
    ({"adapter": {"target_modules": "q_proj"}}, "hone.adapter.target_modules", 'expected "all-linear" or'),
    ({"adapter": {"target_modules": []}}, "hone.adapter.target_modules", 'expected "all-linear" or'),
    ({"adapter": {"target_modules": ["q_proj", 1]}}, "hone.adapter.target_modules", 'expected "all-linear" or'),
    ({"adapter": {"target_modules": ["(a+)+$"]}}, "hone.adapter.target_modules", 'expected "all-linear" or'),
    ({"adapter": {"rslora": "yes"}}, "hone.adapter.rslora", "expected a boolean"),
    ({"quantization": "int8"}, "hone.quantization", "expected 'nf4'"),
    ({"learning_rate": 0}, "hone.learning_rate", "greater than 0"),
    ({"learning_rate": float("nan")}, "hone.learning_rate", "finite"),
    ({"learning_rate": "1e-4"}, "hone.learning_rate", "expected a number"),
    ({"schedule": "polynomial"}, "hone.schedule", "'linear', 'cosine' or 'constant'"),
    ({"warmup_steps": -1}, "hone.warmup_steps", "greater than or equal to 0"),
    ({"max_sequence_tokens": 513}, "hone.max_sequence_tokens", "takes at most 512"),
    ({"max_sequence_tokens": 2**63}, "hone.max_sequence_tokens", "less than or equal"),
    ({"eval_interval_steps": 0}, "hone.eval_interval_steps", "greater than or equal to 1"),
    ({"early_stopping": {}}, "hone.early_stopping.patience", "Missing required parameter"),
    ({"early_stopping": {"patience": 2}}, "hone.early_stopping", "needs a 'validation_file'"),
    ({"keep_best": True}, "hone.keep_best", "needs a 'validation_file'"),
    ({"dpo": {"loss": "ipo", "label_smoothing": 0.1}}, "hone.dpo.label_smoothing", "IPO has none"),
    ({"dpo": {"loss": "ipo"}}, "hone.dpo", "the method is 'supervised'"),
    ({"trackers": {"mlflow": {"experiment": "a\0b"}}}, "hone.trackers.mlflow.experiment", "NUL"),
    ({"trackers": {"mlflow": {"run_name": "\ud800"}}}, "hone.trackers.mlflow.run_name", "Unicode"),
    ({"trackers": {"mlflow": {"run_name": "x" * 201}}}, "hone.trackers.mlflow.run_name", "200"),
    ({"trackers": {"mlflow": {"tags": {"team": "a\0b"}}}}, "hone.trackers.mlflow.tags.team", "NUL"),
    ({"trackers": {"mlflow": {"tags": {"team": "x" * 513}}}}, "hone.trackers.mlflow.tags.team", "512"),
    ({"trackers": {"mlflow": {"tags": {"a\0b": "x"}}}}, "hone.trackers.mlflow.tags.a?b", "NUL"),
    ({"trackers": {"mlflow": {"tags": {"x" * 65: "x"}}}}, f"hone.trackers.mlflow.tags.{'x' * 64}", "64"),
    ({"a\0b": 1}, "hone.a?b", "Unknown parameter"),
    ({"\ud800": 1}, "hone", ""),
]


async def test_what_cannot_be_is_refused_by_name(tenant: Tenant, subtests: pytest.Subtests) -> None:
    training = await factories.file(tenant.resources, tenant.principal)
    async with tenant.http() as http:
        for hone, param, words in _BAD:
            with subtests.test(str(hone)[:60]):
                body = json.dumps({"model": factories.BASE_MODEL, "training_file": training.id, "hone": hone})
                headers = {"Content-Type": "application/json"}
                answer = await http.post("/v1/fine_tuning/jobs", content=body, headers=headers)
                assert answer.status_code == 400, answer.text
                error = answer.json()["error"]
                assert (error["type"], error["param"]) == ("invalid_request_error", param)
                assert words in error["message"]


async def test_an_absolute_learning_rate_excludes_a_multiplier(tenant: Tenant) -> None:
    with pytest.raises(BadRequestError) as refused:
        await create(tenant, {"learning_rate": 1e-4}, hyperparameters={"learning_rate_multiplier": 2})
    assert refused.value.param == "hone.learning_rate"
    job = await create(tenant, {"learning_rate": 1e-4}, hyperparameters={"learning_rate_multiplier": "auto"})
    assert job.hyperparameters.learning_rate_multiplier == "auto"


# Continuing


async def test_a_job_continues_from_a_model(tenant: Tenant, other_tenant: Tenant) -> None:
    _, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    job = await create(tenant, {}, model=model.id)
    assert job.model == model.id
    row = await stored(tenant, job.id)
    assert row.base_model_id == factories.BASE_MODEL
    assert row.initial_adapter == {
        "model": model.id,
        "key": model.adapter_key,
        "sha256": model.adapter_sha256,
        "lora": factories.LORA,
    }
    with pytest.raises(BadRequestError) as refused:
        await create(other_tenant, {}, model=model.id)
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")


async def test_a_job_continues_from_a_checkpoint(tenant: Tenant) -> None:
    made, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    checkpoint = await factories.checkpoint(tenant.resources, made, step=12)
    job = await create(tenant, {}, model=checkpoint.model_name)
    row = await stored(tenant, job.id)
    assert row.initial_adapter is not None
    assert row.initial_adapter["sha256"] == checkpoint.adapter_sha256 != model.adapter_sha256


async def test_an_adapter_keeps_its_shape(tenant: Tenant) -> None:
    _, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    for same in ({"rank": 8}, {"alpha": 16}, {"alpha": None}, {"target_modules": "all-linear", "dora": False}):
        assert (await create(tenant, {"adapter": same}, model=model.id)).model == model.id
    for other in ({"rank": 16}, {"alpha": 32}, {"dropout": 0.1}, {"target_modules": ["q_proj"]}, {"dora": True}):
        with pytest.raises(BadRequestError, match="cannot differ") as refused:
            await create(tenant, {"adapter": other}, model=model.id)
        assert refused.value.param == f"hone.adapter.{next(iter(other))}"


async def test_an_adapter_outlives_its_model_as_long_as_a_job_needs_it(tenant: Tenant) -> None:
    made, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    waiting = [await create(tenant, {}, model=model.id) for _ in range(2)]
    await tenant.client.models.delete(model.id)
    for file_id in made.result_file_ids:
        await tenant.client.files.delete(file_id)
    assert model.adapter_key in await factories.objects(tenant.resources)

    await tenant.client.fine_tuning.jobs.cancel(waiting[0].id)
    assert model.adapter_key in await factories.objects(tenant.resources)
    await tenant.client.fine_tuning.jobs.cancel(waiting[1].id)
    assert model.adapter_key not in await factories.objects(tenant.resources)


async def test_the_last_checkpoint_of_a_deleted_model_is_gone_with_it(tenant: Tenant) -> None:
    made, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    await factories.checkpoint(tenant.resources, made, step=36, model_name=model.id)
    await tenant.client.models.delete(model.id)
    with pytest.raises(BadRequestError) as refused:
        await create(tenant, {}, model=model.id)
    assert refused.value.code == "model_not_found"


# Adapters by the names of models


async def test_the_adapter_of_a_model_can_be_downloaded(tenant: Tenant, other_tenant: Tenant) -> None:
    made, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    checkpoint = await factories.checkpoint(tenant.resources, made, step=12)
    async with tenant.http() as http:
        answer = await http.get(f"/v1/models/{model.id}/adapter")
        assert answer.content == b"the adapter" * 1000
        assert "-my-suffix-" in answer.headers["content-disposition"]
        assert (await http.get(f"/v1/models/{checkpoint.model_name}/adapter")).content == b"adapter at step 12"
        base = await http.get(f"/v1/models/{factories.BASE_MODEL}/adapter")
        assert (base.status_code, base.json()["error"]["code"]) == (404, "adapter_not_found")
    async with other_tenant.http() as http:
        missing = await http.get(f"/v1/models/{model.id}/adapter")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    with pytest.raises(NotFoundError):
        await tenant.client.models.retrieve("nothing/adapter")


def details(job: FineTuningJob) -> dict[str, Any]:
    found = job.to_dict()["hone"]
    assert isinstance(found, dict)
    return found


async def stored(tenant: Tenant, job_id: str) -> Job:
    async with tenant.resources.read() as session:
        return (await session.scalars(scoped(Job, tenant.principal).where(Job.id == job_id))).one()
