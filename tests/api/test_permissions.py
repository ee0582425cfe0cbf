"""Checkpoint permissions through the official client, in both of the ways in which it reads a list of them."""

import pytest
from openai import BadRequestError, NotFoundError, PermissionDeniedError

from tests import factories
from tests.conftest import Tenant


async def test_a_model_is_shared_and_taken_back(tenant: Tenant, neighbour: Tenant, other_tenant: Tenant) -> None:
    _, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    permissions = tenant.client.fine_tuning.checkpoints.permissions
    created = await permissions.create(model.id, project_ids=[neighbour.principal.project_id])
    (permission,) = created.data
    assert permission.id.startswith("cp_")
    assert (permission.object, permission.project_id) == ("checkpoint.permission", neighbour.principal.project_id)
    assert (await permissions.create(model.id, project_ids=[permission.project_id])).data == created.data

    seen = await neighbour.client.models.retrieve(model.id)
    assert seen.owned_by == tenant.principal.organization_id
    assert seen.to_dict()["hone"] == {"kind": "shared", "base_model": factories.BASE_MODEL}
    assert seen in [one async for one in neighbour.client.models.list()]
    async with neighbour.http() as http:
        adapter = await http.get(f"/v1/models/{model.id}/adapter")
        assert (adapter.status_code, adapter.content) == (200, b"the adapter" * 1000)
        assert (await http.get(f"/v1/fine_tuning/jobs/{model.job_id}/adapter")).status_code == 404
    training = await factories.file(neighbour.resources, neighbour.principal)
    job = await neighbour.client.fine_tuning.jobs.create(model=model.id, training_file=training.id)
    assert job.model == model.id
    with pytest.raises(PermissionDeniedError):
        await neighbour.client.models.delete(model.id)
    with pytest.raises(NotFoundError):
        await neighbour.client.fine_tuning.checkpoints.permissions.list(model.id)
    with pytest.raises(NotFoundError):
        await other_tenant.client.models.retrieve(model.id)

    deleted = await permissions.delete(permission.id, fine_tuned_model_checkpoint=model.id)
    assert deleted.to_dict() == {"id": permission.id, "object": "checkpoint.permission", "deleted": True}
    with pytest.raises(NotFoundError):
        await permissions.delete(permission.id, fine_tuned_model_checkpoint=model.id)
    with pytest.raises(NotFoundError):
        await neighbour.client.models.retrieve(model.id)
    with pytest.raises(BadRequestError):
        await neighbour.client.fine_tuning.jobs.create(model=model.id, training_file=training.id)
    assert (await neighbour.client.fine_tuning.jobs.retrieve(job.id)).status == "validating_files"


async def test_permissions_are_listed_in_pages_and_both_orders(tenant: Tenant) -> None:
    job, _ = await factories.succeeded_job(tenant.resources, tenant.principal)
    checkpoint = await factories.checkpoint(tenant.resources, job, step=1)
    permissions = tenant.client.fine_tuning.checkpoints.permissions
    empty = await permissions.list(checkpoint.model_name)
    assert (empty.data, empty.has_more, empty.last_id) == ([], False, None)
    projects = [(await factories.project(tenant.resources, beside=tenant.principal))[0].project_id for _ in range(5)]
    made = (await permissions.create(checkpoint.model_name, project_ids=projects)).data
    assert [one.project_id for one in made] == projects

    ascending = [one async for one in permissions.list(checkpoint.model_name, order="ascending", limit=2)]
    descending = [one async for one in permissions.list(checkpoint.model_name, limit=2)]
    assert ascending == descending[::-1]
    assert {one.id for one in ascending} == {one.id for one in made}
    (of_one,) = [one async for one in permissions.list(checkpoint.model_name, project_id=projects[3])]
    assert of_one.project_id == projects[3]
    assert (await permissions.list(checkpoint.model_name, project_id="proj_nobody")).data == []
    with pytest.warns(DeprecationWarning, match="list method"):
        page = await permissions.retrieve(checkpoint.model_name, limit=2)
    assert [one.id for one in page.data] == [one.id for one in descending[:2]]
    assert (page.first_id, page.last_id, page.has_more) == (descending[0].id, descending[1].id, True)


async def test_what_cannot_be_shared_is_refused_by_name(tenant: Tenant, other_tenant: Tenant) -> None:
    _, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    permissions = tenant.client.fine_tuning.checkpoints.permissions
    for project_id in (other_tenant.principal.project_id, "proj_nobody"):
        with pytest.raises(BadRequestError) as refused:
            await permissions.create(model.id, project_ids=[project_id])
        assert (refused.value.code, refused.value.param) == ("project_not_found", "project_ids")
        assert project_id in refused.value.message
    for name in (factories.BASE_MODEL, "ft:nothing"):
        with pytest.raises(NotFoundError) as missing:
            await permissions.list(name)
        assert missing.value.code == "model_not_found"
    async with tenant.http() as http:
        path = f"/v1/fine_tuning/checkpoints/{model.id}/permissions"
        for body in ({}, {"project_ids": []}, {"project_ids": [1]}, {"project_ids": ["a"], "more": 1}, []):
            answer = await http.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        assert (await http.get(path, params={"order": "asc"})).status_code == 400
        assert (await http.delete(f"{path}/%00")).status_code == 404


async def test_an_admin_key_shares_the_models_of_its_organization(
    tenant: Tenant, neighbour: Tenant, other_tenant: Tenant
) -> None:
    """As OpenAI's documentation asks for one, and the Node client insists on it."""
    _, model = await factories.succeeded_job(tenant.resources, tenant.principal)
    admin, stranger = await tenant.administrator(), await other_tenant.administrator()
    permissions = admin.fine_tuning.checkpoints.permissions
    created = await permissions.create(model.id, project_ids=[neighbour.principal.project_id])
    assert [one.id async for one in permissions.list(model.id)] == [created.data[0].id]
    assert (await neighbour.client.models.retrieve(model.id)).id == model.id
    for other in (stranger, admin.with_options(project=neighbour.principal.project_id)):
        with pytest.raises(NotFoundError) as missing:
            await other.fine_tuning.checkpoints.permissions.list(model.id)
        assert missing.value.code == "model_not_found"
    selected = admin.with_options(project=tenant.principal.project_id).fine_tuning.checkpoints.permissions
    assert (await selected.delete(created.data[0].id, fine_tuned_model_checkpoint=model.id)).deleted
    with pytest.raises(PermissionDeniedError):
        await admin.models.list()
