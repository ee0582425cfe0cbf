"""The audit log itself: with its change or not at all, and never changed after."""

from datetime import timedelta

import pytest
from sqlalchemy import Executable, delete, select, text, update
from sqlalchemy.exc import DatabaseError, IntegrityError

from app.auth import Principal
from app.db.audit_models import Action, AuditEntry, AuditHorizon
from app.errors import NotFound
from app.ids import utc_now
from app.origin import Origin, origin
from app.resources import Resources
from app.services import audit, files, keys
from tests import factories
from worker import tidying


async def entries(resources: Resources) -> list[AuditEntry]:
    async with resources.read() as session:
        return list(await session.scalars(select(AuditEntry).order_by(AuditEntry.effective_at)))


async def made(resources: Resources, *, days_ago: int = 0) -> str:
    columns = audit.entry(None, Action.WORKER_DRAINED, "worker-a")
    columns["effective_at"] -= timedelta(days=days_ago)
    async with resources.write() as session:
        session.add(AuditEntry(**columns))
    return columns["id"]


async def test_a_change_that_fails_leaves_no_entry(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    file = await factories.file(resources, principal)
    before = len(await entries(resources))
    with pytest.raises(NotFound):
        await delete_twice(resources, principal, file.id)
    assert len(await entries(resources)) == before
    async with resources.write() as session:
        await files.delete(session, principal, file_id=file.id)
    (entry,) = (await entries(resources))[before:]
    assert (entry.action, entry.target_id, entry.project_id) == ("file.deleted", file.id, principal.project_id)


async def delete_twice(resources: Resources, principal: Principal, file_id: str) -> None:
    async with resources.write() as session:
        for _ in range(2):
            await files.delete(session, principal, file_id=file_id)
            await session.flush()


async def delete_with_entry(resources: Resources, principal: Principal, file_id: str, entry_id: str) -> None:
    """The entry's id is taken."""
    async with resources.write() as session:
        await files.delete(session, principal, file_id=file_id)
        session.add(AuditEntry(**(audit.entry(None, Action.FILE_DELETED, file_id) | {"id": entry_id})))


async def test_an_entry_that_fails_undoes_its_change(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    file = await factories.file(resources, principal)
    taken = await made(resources)
    with pytest.raises(IntegrityError):
        await delete_with_entry(resources, principal, file.id, taken)
    async with resources.read() as session:
        assert await files.find(session, principal, file_id=file.id) is not None


@pytest.mark.parametrize(
    "statement",
    [
        update(AuditEntry).values(outcome="failed"),
        delete(AuditEntry),
        text("DELETE FROM audit_entries"),
        text("UPDATE audit_entries SET actor_id = NULL"),
        text("UPDATE audit_horizons SET horizon = created_at"),
        text("DELETE FROM audit_horizons"),
    ],
    ids=str,
)
async def test_the_database_refuses_to_change_or_remove_entries(resources: Resources, statement: Executable) -> None:
    await made(resources)
    async with resources.write() as session:
        long_ago = utc_now() - timedelta(days=1)
        session.add(AuditHorizon(id="audit_horizon-a", horizon=long_ago, created_at=long_ago))
    before = [(entry.id, entry.outcome) for entry in await entries(resources)]
    with pytest.raises(DatabaseError, match="append-only"):
        async with resources.write() as session:
            await session.execute(statement)
    assert [(entry.id, entry.outcome) for entry in await entries(resources)] == before


async def test_nor_may_the_table_be_emptied_at_once(resources: Resources) -> None:
    if resources.database.is_sqlite:
        pytest.skip("SQLite has no TRUNCATE")
    await made(resources)
    with pytest.raises(DatabaseError, match="append-only"):
        async with resources.write() as session:
            await session.execute(text("TRUNCATE audit_entries"))
    assert len(await entries(resources)) == 1


async def test_what_is_older_than_it_must_be_kept_goes_through_the_door_that_there_is(resources: Resources) -> None:
    old = [await made(resources, days_ago=40), await made(resources, days_ago=31)]
    kept = [await made(resources, days_ago=29), await made(resources)]
    for _ in range(2):  # a second worker finds nothing to do
        await tidying.prune_audit_log(resources, days=30)
        left = await entries(resources)
        assert not {entry.id for entry in left} & set(old)
        assert {entry.id for entry in left} > set(kept)
        (told,) = [entry for entry in left if entry.action == "audit_log.pruned"]
        assert told.details is not None
        assert set(told.details) == {"before"}


async def test_without_a_setting_entries_stay_for_ever(resources: Resources) -> None:
    old = await made(resources, days_ago=4000)
    await tidying.keep_books(resources)
    assert [entry.id for entry in await entries(resources)] == [old]


async def test_those_without_a_key_are_told_by_what_they_are(resources: Resources) -> None:
    origin.set(Origin("cli"))
    async with resources.write() as session:
        await keys.add_to_default_project(session, name="another")
    found = {entry.action: entry for entry in await entries(resources)}
    for action in ("project.created", "api_key.created"):
        entry = found[Action(action)]
        assert (entry.actor_kind, entry.actor_id, entry.request_id) == ("cli", None, None)
        assert entry.organization_id is not None
    assert found[Action.API_KEY_CREATED].project_id == found[Action.PROJECT_CREATED].target_id


async def test_what_expires_is_deleted_by_nobody_in_particular(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    file = await factories.file(resources, principal)
    async with resources.write() as session:
        row = await files.get(session, principal, file_id=file.id, lock=True)
        row.expires_at = utc_now() - timedelta(seconds=1)
    await tidying.remove_expired(resources)
    (entry,) = [one for one in await entries(resources) if one.target_id == file.id]
    assert (entry.action, entry.actor_id, entry.details) == ("file.deleted", None, {"reason": "expired"})
    assert (entry.project_id, entry.organization_id) == (principal.project_id, principal.organization_id)


async def test_an_attempt_that_is_made_again_writes_nothing_twice(resources: Resources) -> None:
    batch = [audit.entry(None, Action.WORKER_DRAINED, f"worker-{number}") for number in range(3)]
    for some in (batch[:2], batch):
        async with resources.write() as session:
            await audit.write(session, some)
    assert {entry.id for entry in await entries(resources)} == {one["id"] for one in batch}
