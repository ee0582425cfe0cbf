"""/v1/models through the official client."""

import pytest
from openai import NotFoundError, PermissionDeniedError

from tests import factories
from tests.conftest import Tenant


async def test_base_models_and_own_models_are_listed(tenant: Tenant, other_tenant: Tenant) -> None:
    _, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    listed = {found.id: found async for found in tenant.client.models.list()}
    assert listed[factories.BASE_MODEL].owned_by == "system"
    assert listed[model.id].owned_by == tenant.principal.organization_id
    assert await tenant.client.models.retrieve(model.id) == listed[model.id]
    assert model.id not in [found.id async for found in other_tenant.client.models.list()]
    with pytest.raises(NotFoundError):
        await other_tenant.client.models.retrieve(model.id)
    with pytest.raises(NotFoundError):
        await other_tenant.client.models.delete(model.id)


async def test_names_may_hold_slashes(tenant: Tenant) -> None:
    await factories.base_model(tenant.resources, factories.BASE_MODEL_WITH_SLASH)
    assert (await tenant.client.models.retrieve(factories.BASE_MODEL_WITH_SLASH)).id == factories.BASE_MODEL_WITH_SLASH
    training = await factories.file(tenant.resources, tenant.principal)
    created = await tenant.client.fine_tuning.jobs.create(
        model=factories.BASE_MODEL_WITH_SLASH, training_file=training.id
    )
    assert created.model == factories.BASE_MODEL_WITH_SLASH


async def test_a_fine_tuned_model_can_be_deleted(tenant: Tenant) -> None:
    job, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    deleted = await tenant.client.models.delete(model.id)
    assert deleted.to_dict() == {"id": model.id, "object": "model", "deleted": True}
    with pytest.raises(NotFoundError) as missing:
        await tenant.client.models.retrieve(model.id)
    assert missing.value.body == {
        "message": f"The model '{model.id}' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    # The result file shares the model's archive and keeps it alive.
    assert (await tenant.client.files.content(job.result_file_ids[1])).content == b"the adapter" * 1000


async def test_a_base_model_cannot_be_deleted(tenant: Tenant) -> None:
    with pytest.raises(PermissionDeniedError) as refused:
        await tenant.client.models.delete(factories.BASE_MODEL)
    assert "base model" in refused.value.message
