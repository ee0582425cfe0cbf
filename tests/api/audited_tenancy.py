"""The calls of organizations, projects, people and keys, and their entries."""

import secrets
from typing import Any

import httpx

from tests.api.audited import Actors, writes

ORGANIZATION = "/v1/organization"
OPERATOR = "/v1/admin"


def project(by: Actors) -> str:
    return f"{ORGANIZATION}/projects/{by.tenant.principal.project_id}"


async def made(client: httpx.AsyncClient, path: str, **body: Any) -> str:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


@writes("create_project", "project.created")
async def _(by: Actors) -> httpx.Response:
    return await by.admin.post(f"{ORGANIZATION}/projects", json={"name": "a"})


@writes("modify_project", "project.updated")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(project(by), json={"name": "another"})


@writes("archive_project", "project.archived")
async def _(by: Actors) -> httpx.Response:
    project_id = await made(by.admin, f"{ORGANIZATION}/projects", name="a")
    return await by.admin.post(f"{ORGANIZATION}/projects/{project_id}/archive")


async def member(by: Actors) -> str:
    return await made(by.http, f"{project(by)}/users", role="member", email=f"{secrets.token_hex(4)}@example.com")


@writes("create_project_user", "project.user.added")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(f"{project(by)}/users", json={"role": "member", "email": "ada@example.com"})


@writes("modify_project_user", "project.user.updated")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(f"{project(by)}/users/{await member(by)}", json={"role": "reader"})


@writes("delete_project_user", "project.user.removed")
async def _(by: Actors) -> httpx.Response:
    return await by.http.delete(f"{project(by)}/users/{await member(by)}")


@writes("modify_user", "user.updated")
async def _(by: Actors) -> httpx.Response:
    return await by.admin.post(f"{ORGANIZATION}/users/{await member(by)}", json={"role": "owner"})


@writes("delete_user", "user.deleted")
async def _(by: Actors) -> httpx.Response:
    return await by.admin.delete(f"{ORGANIZATION}/users/{await member(by)}")


async def account(by: Actors) -> str:
    path = f"{project(by)}/service_accounts"
    return f"{path}/{await made(by.http, path, name='nightly')}"


@writes("create_project_service_account", "service_account.created")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(f"{project(by)}/service_accounts", json={"name": "nightly"})


@writes("modify_project_service_account", "service_account.updated")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(await account(by), json={"name": "weekly"})


@writes("delete_project_service_account", "service_account.deleted")
async def _(by: Actors) -> httpx.Response:
    return await by.http.delete(await account(by))


@writes("create_project_service_account_api_key", "api_key.created")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(f"{await account(by)}/api_keys", json={"name": "another"})


async def project_key(by: Actors) -> str:
    return await made(by.http, f"{project(by)}/api_keys", name="mine")


@writes("create_project_api_key", "api_key.created")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(f"{project(by)}/api_keys", json={"name": "mine"})


@writes("modify_project_api_key", "api_key.updated")
async def _(by: Actors) -> httpx.Response:
    return await by.http.post(f"{project(by)}/api_keys/{await project_key(by)}", json={"expires_in_seconds": 60})


@writes("delete_project_api_key", "api_key.deleted")
async def _(by: Actors) -> httpx.Response:
    return await by.http.delete(f"{project(by)}/api_keys/{await project_key(by)}")


@writes("create_admin_api_key", "api_key.created")
async def _(by: Actors) -> httpx.Response:
    return await by.admin.post(f"{ORGANIZATION}/admin_api_keys", json={"name": "terraform"})


@writes("delete_admin_api_key", "api_key.deleted")
async def _(by: Actors) -> httpx.Response:
    key_id = await made(by.admin, f"{ORGANIZATION}/admin_api_keys", name="terraform")
    return await by.admin.delete(f"{ORGANIZATION}/admin_api_keys/{key_id}")


async def organization(by: Actors) -> str:
    path = f"{OPERATOR}/organizations"
    return f"{path}/{await made(by.operator, path, name=f'acme-{secrets.token_hex(4)}')}"


@writes("create_organization", "organization.created")
async def _(by: Actors) -> httpx.Response:
    return await by.operator.post(f"{OPERATOR}/organizations", json={"name": f"acme-{secrets.token_hex(4)}"})


@writes("modify_organization", "organization.disabled")
async def _(by: Actors) -> httpx.Response:
    return await by.operator.post(await organization(by), json={"disabled": True})


@writes("create_organization_admin_api_key", "api_key.created")
async def _(by: Actors) -> httpx.Response:
    return await by.operator.post(f"{await organization(by)}/admin_api_keys", json={"name": "first"})


@writes("create_organization_project", "project.created")
async def _(by: Actors) -> httpx.Response:
    return await by.operator.post(f"{await organization(by)}/projects", json={"name": "first"})


@writes("modify_any_project", "project.disabled")
async def _(by: Actors) -> httpx.Response:
    project_id = await made(by.operator, f"{await organization(by)}/projects", name="first")
    return await by.operator.post(f"{OPERATOR}/projects/{project_id}", json={"disabled": True})


@writes("create_any_project_api_key", "api_key.created")
async def _(by: Actors) -> httpx.Response:
    path = f"{OPERATOR}/projects/{by.tenant.principal.project_id}/api_keys"
    return await by.operator.post(path, json={"name": "theirs"})


@writes("delete_any_api_key", "api_key.deleted")
async def _(by: Actors) -> httpx.Response:
    return await by.operator.delete(f"{OPERATOR}/api_keys/{await project_key(by)}")


@writes("change_project_limits", "project.limits.updated")
async def _(by: Actors) -> httpx.Response:
    path = f"{OPERATOR}/projects/{by.tenant.principal.project_id}/limits"
    return await by.operator.post(path, json={"files": 5})
