"""Keys: the first one of an installation, and who a key stands for."""

import pytest

from app.db.models import ApiKey, Organization, Project
from app.db.queries import server_rows
from app.errors import Unauthenticated
from app.resources import Resources
from app.services import keys
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
