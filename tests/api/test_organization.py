"""The admin API through the official client in strict validation, and what follows from it for keys."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError, PermissionDeniedError

from app.auth import Role
from app.db.models import ApiKey
from app.db.queries import server_rows
from app.ids import utc_now
from app.services import keys
from tests import factories
from tests.conftest import Tenant


async def test_projects_are_made_listed_renamed_and_archived(tenant: Tenant) -> None:
    admin = await tenant.administrator()
    projects = admin.admin.organization.projects
    made = await projects.create(name=" support bots ")
    assert made.id.startswith("proj_")
    assert (made.object, made.name, made.status, made.archived_at) == (
        "organization.project",
        "support bots",
        "active",
        None,
    )
    assert await projects.retrieve(made.id) == made
    assert (await projects.update(made.id, name="bots")).name == "bots"
    assert [one.id async for one in projects.list(limit=1)] == [made.id, tenant.principal.project_id]
    account = await projects.service_accounts.create(made.id, name="nightly")
    assert account.api_key is not None
    client = admin.with_options(api_key=account.api_key.value)
    assert [one async for one in client.files.list()] == []

    archived = await projects.archive(made.id)
    assert archived.status == "archived"
    assert archived.archived_at is not None
    assert await projects.archive(made.id) == archived
    with pytest.raises(AuthenticationError) as refused:
        await client.files.list()
    assert refused.value.code == "project_archived"
    assert [one.id async for one in projects.list()] == [tenant.principal.project_id]
    assert made.id in [one.id async for one in projects.list(include_archived=True)]
    for change in (
        projects.update(made.id, name="again"),
        projects.service_accounts.create(made.id, name="x"),
        projects.users.create(made.id, role="member", email="ada@example.com"),
        projects.create(name=" "),
        projects.create(name="x", geography="EU"),
    ):
        with pytest.raises(BadRequestError):
            await change


async def test_a_member_is_a_person_whose_keys_carry_the_role(tenant: Tenant, neighbour: Tenant) -> None:
    admin = await tenant.administrator()
    organization = admin.admin.organization
    project = tenant.principal.project_id
    ada = await organization.projects.users.create(project, role="member", email=" Ada@Example.com")
    assert (ada.object, ada.name, ada.email, ada.role) == (
        "organization.project.user",
        "ada",
        "ada@example.com",
        "member",
    )
    key = await _key(tenant, user_id=ada.id, role="owner")
    client = tenant.client.with_options(api_key=key["value"])
    assert key["owner"]["user"]["email"] == "ada@example.com"
    await client.files.create(file=("train.jsonl", factories.jsonl()), purpose="fine-tune")
    with pytest.raises(PermissionDeniedError):  # a member's key is no owner's, whatever is written on it
        await _client(tenant, key["value"]).admin.organization.projects.users.list(project)

    assert (await organization.projects.users.update(ada.id, project_id=project, role="reader")).role == "reader"
    with pytest.raises(PermissionDeniedError) as refused:
        await client.files.create(file=("train.jsonl", factories.jsonl()), purpose="fine-tune")
    assert refused.value.code == "missing_scope"
    assert "Missing scopes: files.write." in refused.value.message
    assert len([one async for one in client.files.list()]) == 1

    await organization.projects.users.create(neighbour.principal.project_id, role="owner", user_id=ada.id)
    user = await organization.users.retrieve(ada.id)
    assert user.projects is not None
    assert {(one.id, one.role) for one in user.projects.data} == {
        (project, "reader"),
        (neighbour.principal.project_id, "owner"),
    }
    assert [one.id async for one in organization.users.list(emails=["ADA@example.com"])] == [ada.id]
    assert [one async for one in organization.users.list(emails=["bob@example.com"])] == []
    assert (await organization.users.update(ada.id, role="owner")).role == "owner"
    assert [one.id async for one in organization.projects.users.list(project)] == [ada.id]

    deleted = await organization.projects.users.delete(ada.id, project_id=project)
    assert (deleted.id, deleted.deleted) == (ada.id, True)
    with pytest.raises(AuthenticationError) as gone:
        await client.files.list()
    assert gone.value.code == "invalid_api_key"
    back = await organization.projects.users.create(project, role="member", email="ada@example.com")
    assert back.id == ada.id
    with pytest.raises(AuthenticationError):  # the key stays revoked
        await client.files.list()
    assert (await organization.users.delete(ada.id)).deleted
    for missing in (
        organization.users.retrieve(ada.id),
        organization.projects.users.retrieve(ada.id, project_id=project),
        organization.projects.users.retrieve(ada.id, project_id=neighbour.principal.project_id),
    ):
        with pytest.raises(NotFoundError):
            await missing


async def test_service_accounts_show_their_key_once(tenant: Tenant) -> None:
    admin = await tenant.administrator()
    project, accounts = tenant.principal.project_id, admin.admin.organization.projects.service_accounts
    made = await accounts.create(project, name="nightly", expires_in_seconds=3600)
    assert made.api_key is not None
    assert (made.role, made.api_key.object) == ("member", "organization.project.service_account.api_key")
    assert made.api_key.expires_at is not None
    client = tenant.client.with_options(api_key=made.api_key.value)
    assert [one async for one in client.files.list()] == []
    shown = await accounts.retrieve(made.id, project_id=project)
    assert made.api_key.value not in shown.model_dump_json()
    assert [one.id async for one in accounts.list(project)] == [made.id]
    second = await accounts.api_keys.create(made.id, project_id=project, scopes=["api.all.read"])
    reader = tenant.client.with_options(api_key=second.value)
    assert [one async for one in reader.fine_tuning.jobs.list()] == []
    with pytest.raises(PermissionDeniedError):
        await reader.files.delete("file-x")
    assert (await accounts.update(made.id, project_id=project, role="owner")).role == "owner"
    assert (await accounts.create(project, name="bare", create_service_account_only=True)).api_key is None
    assert (await accounts.delete(made.id, project_id=project)).deleted
    for one in (client, reader):
        with pytest.raises(AuthenticationError):
            await one.files.list()


async def test_keys_are_listed_restricted_and_revoked(tenant: Tenant) -> None:
    admin = await tenant.administrator()
    project, api_keys = tenant.principal.project_id, admin.admin.organization.projects.api_keys
    (first,) = [one async for one in api_keys.list(project)]
    assert (first.id, first.owner.type, first.expires_at) == (tenant.principal.key_id, None, None)
    assert tenant.key not in first.model_dump_json()
    assert first.redacted_value == f"{tenant.key[:8]}...{tenant.key[-4:]}"
    assert first.to_dict()["hone"] == {"role": "owner", "scopes": None}

    made = await _key(tenant, name="ci", role="member", scopes=["jobs.read", "api.files.write"])
    client = tenant.client.with_options(api_key=made["value"])
    assert made["hone"] == {"role": "member", "scopes": ["files.write", "jobs.read"]}
    await client.files.create(file=("train.jsonl", factories.jsonl()), purpose="fine-tune")
    with pytest.raises(PermissionDeniedError):
        await client.models.list()
    widened = await api_keys.update(made["id"], project_id=project, scopes=[], expires_in_seconds=60)
    assert widened.expires_at is not None
    await client.models.list()
    assert (await api_keys.delete(made["id"], project_id=project)).deleted
    with pytest.raises(AuthenticationError):
        await client.models.list()
    with pytest.raises(NotFoundError):
        await api_keys.retrieve(made["id"], project_id=project)
    async with tenant.http() as http:
        wrong = await http.post(
            f"/v1/organization/projects/{project}/api_keys", json={"name": "x", "scopes": ["files.burn"]}
        )
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "scopes[0]")


async def test_nobody_gives_what_they_do_not_have(tenant: Tenant) -> None:
    """Or a key that may only administer could make itself one for the data."""
    limited = await factories.key(tenant.resources, tenant.principal, scopes=["admin.write", "files.read"])
    path = f"/v1/organization/projects/{tenant.principal.project_id}"
    async with tenant.http(limited) as http:
        for where, body in (
            ("api_keys", {"name": "x", "role": "member"}),
            ("api_keys", {"name": "x", "role": "owner", "scopes": ["files.write"]}),
            ("service_accounts", {"name": "x"}),
        ):
            refused = await http.post(f"{path}/{where}", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
        listed = (await http.get(f"{path}/api_keys")).json()["data"]
        (own,) = [one for one in listed if one["redacted_value"].endswith(limited[-4:])]
        assert (await http.post(f"{path}/api_keys/{own['id']}", json={"scopes": []})).status_code == 403
        allowed = await http.post(f"{path}/api_keys", json={"name": "x", "role": "owner", "scopes": ["files.read"]})
        assert allowed.status_code == 200
        assert (await http.get(f"{path}/service_accounts")).json()["data"] == []  # what was refused has left nothing


async def test_an_expired_key_is_refused_in_words(tenant: Tenant) -> None:
    made = await _key(tenant, expires_in_seconds=3600)
    client = tenant.client.with_options(api_key=made["value"])
    await client.models.list()
    async with tenant.resources.write() as session:
        row = (await session.scalars(server_rows(ApiKey).where(ApiKey.id == made["id"]))).one()
        row.expires_at = utc_now() - timedelta(seconds=1)
    with pytest.raises(AuthenticationError) as refused:
        await client.models.list()
    assert refused.value.code == "api_key_expired"
    assert "has expired." in refused.value.message
    assert made["value"] not in refused.value.message


async def test_admin_keys_administer_and_nothing_else(tenant: Tenant, other_tenant: Tenant) -> None:
    admin = await tenant.administrator()
    admin_keys = admin.admin.organization.admin_api_keys
    made = await admin_keys.create(name="terraform", expires_in_seconds=60)
    assert made.value.startswith("sk-admin-")
    listed = [one async for one in admin_keys.list(limit=1)]
    assert [one.id for one in listed][-1] == made.id
    assert made.value not in str(listed)
    assert (await admin_keys.retrieve(made.id)).owner.id == tenant.principal.organization_id
    second = admin.with_options(api_key=made.value, admin_api_key=made.value)
    for forbidden in (second.files.list(), second.models.list(), second.fine_tuning.jobs.list()):
        with pytest.raises(PermissionDeniedError):
            await forbidden
    with pytest.raises(PermissionDeniedError):  # nor does a key of a project administer an organization
        await tenant.client.with_options(admin_api_key=tenant.key).admin.organization.projects.list()
    stranger = await other_tenant.administrator()
    with pytest.raises(NotFoundError):
        await stranger.admin.organization.admin_api_keys.delete(made.id)
    assert (await admin_keys.delete(made.id)).deleted
    with pytest.raises(AuthenticationError):
        await second.admin.organization.projects.list()


async def test_headers_select_among_what_a_key_may_see(tenant: Tenant, neighbour: Tenant) -> None:
    own, others = tenant.principal, neighbour.principal
    for organization, project in ((own.organization_id, own.project_id), (None, "")):
        await tenant.client.with_options(organization=organization, project=project).models.list()
    for organization, project, code in (
        (None, others.project_id, "mismatched_project"),
        (None, "proj_nobody", "mismatched_project"),
        ("org-nobody", own.project_id, "mismatched_organization"),
    ):
        with pytest.raises(AuthenticationError) as refused:
            await tenant.client.with_options(organization=organization, project=project).models.list()
        assert refused.value.code == code
        assert refused.value.body == {
            "message": f"OpenAI-{code.split('_')[1].title()} header should match {code.split('_')[1]} for API key",
            "type": "invalid_request_error",
            "param": None,
            "code": code,
        }


async def test_an_owners_key_administers_its_project(tenant: Tenant, neighbour: Tenant) -> None:
    owner = tenant.client.with_options(admin_api_key=tenant.key).admin.organization.projects
    assert (await owner.retrieve(tenant.principal.project_id)).id == tenant.principal.project_id
    ada = await owner.users.create(tenant.principal.project_id, role="member", email="ada@example.com")
    assert [one.id async for one in owner.users.list(tenant.principal.project_id)] == [ada.id]
    for missing in (owner.retrieve(neighbour.principal.project_id), owner.users.list("proj_nobody")):
        with pytest.raises(NotFoundError) as refused:
            await missing
        assert refused.value.code == "project_not_found"
    for role in (Role.MEMBER, Role.READER):
        key = await factories.key(tenant.resources, tenant.principal, role=role)
        with pytest.raises(PermissionDeniedError):
            await tenant.client.with_options(admin_api_key=key).admin.organization.projects.retrieve(
                tenant.principal.project_id
            )


async def all_organizations(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Of as many pages as other tests have filled."""
    found: list[dict[str, Any]] = []
    has_more = True
    while has_more:
        params = {"limit": 100} | ({"after": found[-1]["id"]} if found else {})
        listed = (await http.get("/v1/admin/organizations", params=params)).json()
        found, has_more = [*found, *listed["data"]], listed["has_more"]
    return found


async def test_the_operator_makes_and_disables(tenant: Tenant) -> None:
    async with tenant.resources.write() as session:
        operator = await keys.add_to_default_project(session, name="operator")
        default = await keys.default_project(session)
    name = f"acme-{tenant.principal.project_id[-6:]}"
    async with tenant.http(operator) as http:
        organization = (await http.post("/v1/admin/organizations", json={"name": name})).json()
        assert (organization["object"], organization["disabled_at"]) == ("organization", None)
        for wrong in (name, "a:b", ""):
            assert (await http.post("/v1/admin/organizations", json={"name": wrong})).status_code == 400
        place = f"/v1/admin/organizations/{organization['id']}"
        project = (await http.post(f"{place}/projects", json={"name": "bots"})).json()
        admin_key = (await http.post(f"{place}/admin_api_keys", json={"name": "first"})).json()["value"]
        admin = _client(tenant, admin_key)
        assert [one.id async for one in admin.admin.organization.projects.list()] == [project["id"]]
        made = await http.post(f"/v1/admin/projects/{project['id']}/api_keys", json={"name": "x", "role": "owner"})
        client = _client(tenant, made.json()["value"])
        await client.models.list()

        for where, code in (
            (place, "organization_disabled"),
            (f"/v1/admin/projects/{project['id']}", "project_disabled"),
        ):
            assert (await http.post(where, json={"disabled": True})).json()["disabled_at"] is not None
            with pytest.raises(AuthenticationError) as refused:
                await client.models.list()
            assert refused.value.code == code
            assert (await http.post(where, json={"disabled": False})).json()["disabled_at"] is None
            await client.models.list()
        assert (await http.delete(f"/v1/admin/api_keys/{made.json()['id']}")).json()["deleted"]
        with pytest.raises(AuthenticationError):
            await client.models.list()
        for own in (f"organizations/{default.organization_id}", f"projects/{default.id}"):
            assert (await http.post(f"/v1/admin/{own}", json={"disabled": True})).status_code == 400
        assert name in [one["name"] for one in await all_organizations(http)]
        all_projects = (await http.get("/v1/admin/projects", params={"limit": 100})).json()["data"]
        assert {project["id"], tenant.principal.project_id} <= {one["id"] for one in all_projects}


async def _key(tenant: Tenant, **asked: Any) -> dict[str, Any]:
    path = f"/v1/organization/projects/{tenant.principal.project_id}/api_keys"
    async with tenant.http() as http:
        answer: httpx.Response = await http.post(path, json={"name": "test", **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _client(tenant: Tenant, key: str) -> AsyncOpenAI:
    return tenant.client.with_options(api_key=key, admin_api_key=key)
