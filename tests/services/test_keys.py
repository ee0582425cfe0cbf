"""Keys: the first one of an installation, and who a key stands for."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from app.api.key_uses import KeyUses
from app.auth import Principal
from app.db.models import ApiKey, Organization, Project
from app.db.queries import server_rows
from app.db.tenancy_models import AdminApiKey
from app.errors import Unauthenticated
from app.ids import utc_now
from app.resources import Resources
from app.services import keys, organizations, projects
from tests import factories


async def test_the_first_start_makes_a_project_and_a_key(resources: Resources) -> None:
    async with resources.write() as session:
        made = await keys.bootstrap(session, api_key=None)
    assert made is not None
    assert made.startswith("sk-hone-")
    async with resources.write() as session:
        assert await keys.bootstrap(session, api_key=None) is None
    async with resources.read() as session:
        principal = await keys.authenticate(session, made)
        project = (await session.scalars(server_rows(Project))).one()
        organization = (await session.scalars(server_rows(Organization))).one()
        row = (await session.scalars(server_rows(ApiKey))).one()
    assert (principal.project_id, principal.organization_id) == (project.id, organization.id)
    assert made not in (row.key_hash, row.hint)


async def test_what_is_made_before_the_first_start_is_not_the_operators(resources: Resources) -> None:
    async with resources.write() as session:
        organization = await organizations.create(session, name="acme")
        project = await projects.create(session, organization_id=organization.id, name="bots")
        assert (await keys.default_project(session)).id != project.id
        made = await keys.bootstrap(session, api_key=None)
    assert made is not None
    async with resources.read() as session:
        principal = await keys.authenticate(session, made)
        assert await keys.is_operator(session, principal)
        assert principal.organization_id != organization.id


async def test_an_operators_own_key_is_added_once(resources: Resources) -> None:
    for key in ("the-operators-first-key", "the-operators-first-key", "the-operators-second-key"):
        async with resources.write() as session:
            assert await keys.bootstrap(session, api_key=key) is None
    async with resources.read() as session:
        first = await keys.authenticate(session, "the-operators-first-key")
        second = await keys.authenticate(session, "the-operators-second-key")
        assert len(list(await session.scalars(server_rows(ApiKey)))) == 2
    assert first.project_id == second.project_id


async def test_a_restart_does_not_bring_a_revoked_key_back(resources: Resources) -> None:
    async with resources.write() as session:
        await keys.bootstrap(session, api_key="the-operators-own-key")
    await factories.revoke(resources, "the-operators-own-key")
    async with resources.write() as session:
        await keys.bootstrap(session, api_key="the-operators-own-key")
    async with resources.read() as session:
        with pytest.raises(Unauthenticated):
            await keys.authenticate(session, "the-operators-own-key")


async def test_uses_are_written_in_one_go_and_the_latest_stays(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await factories.admin_key(resources, principal)
    async with resources.read() as session:
        (administrator,) = await session.scalars(server_rows(AdminApiKey))
    uses = KeyUses(resources, flush_seconds=0.01)
    for key_id in (principal.key_id, administrator.id, "key_nobody", principal.key_id):
        uses.note(Principal(key_id, "", ""))
    first = await _last_use(resources, principal)
    while first is None:
        await asyncio.sleep(0.01)
        first = await _last_use(resources, principal)
    async with resources.read() as session:
        assert (await session.scalars(server_rows(AdminApiKey))).one().last_used_at is not None
    async with resources.write() as session:
        await keys.record_uses(session, {principal.key_id: first - timedelta(seconds=1)})
    assert await _last_use(resources, principal) == first


async def _last_use(resources: Resources, principal: Principal) -> datetime | None:
    async with resources.read() as session:
        return (await session.scalars(server_rows(ApiKey).where(ApiKey.id == principal.key_id))).one().last_used_at


async def test_a_stream_under_way_ends_with_whatever_its_key_hangs_on(resources: Resources) -> None:
    """`is_valid` is asked each minute while a client follows a job."""
    principal, _ = await factories.project(resources)

    async def is_valid() -> bool:
        async with resources.read() as session:
            return await keys.is_valid(session, principal)

    async def change(model: Any, **columns: Any) -> None:
        async with resources.write() as session:
            row = (await session.scalars(server_rows(model))).one()
            for name, value in columns.items():
                setattr(row, name, value)

    for model, column in (
        (Organization, "disabled_at"),
        (Project, "disabled_at"),
        (Project, "archived_at"),
        (ApiKey, "expires_at"),
        (ApiKey, "revoked_at"),
    ):
        assert await is_valid()
        await change(model, **{column: utc_now() - timedelta(seconds=1)})
        assert not await is_valid(), column
        await change(model, **{column: None})


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("sk-proj-0123456789abcdwxyz", "sk-...wxyz"),
        ("short", "***"),
        ("line\nfeeds-are-not-repeated", "***"),
        ("ключ-ключ-ключ-ключ", "***"),
        ("\ud800" * 20, "***"),
    ],
    ids=["long", "short", "line feed", "not ASCII", "surrogates"],
)
async def test_a_refusal_shows_little_of_the_key(resources: Resources, key: str, shown: str) -> None:
    async with resources.read() as session:
        with pytest.raises(Unauthenticated) as refused:
            await keys.authenticate(session, key)
    assert refused.value.message == f"Incorrect API key provided: {shown}."
