"""Secrets in the database: sealed, sealed anew, and those of a time when they were not."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from alembic import command
from rich.console import Console
from sqlalchemy import Connection, text

from app import sealing, secret_upkeep, server
from app.auth import Principal
from app.db import migrations
from app.db.queries import database_now, scoped
from app.db.webhook_models import WebhookDelivery, WebhookEndpoint
from app.errors import CannotDo, InvalidRequest, Unavailable
from app.ids import utc_now
from app.resources import Resources, open_resources
from app.schemas.webhooks import WebhookEndpointCreate
from app.sealing import CannotSeal, Sealer
from app.services import webhook_deliveries, webhook_signing, webhooks
from app.services.retries import Attempt
from app.services.sealed_secrets import Count, Seal
from tests import factories
from tests.backends import Site

_CLEAR = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
_OLD_CLEAR = "whsec_IAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def with_keys(resources: Resources, *keys: str) -> Resources:
    return replace(resources, sealer=Sealer(keys))


async def endpoints(resources: Resources, principal: Principal) -> dict[str, WebhookEndpoint]:
    async with resources.read() as session:
        return {row.id: row for row in await session.scalars(scoped(WebhookEndpoint, principal))}


async def in_clear(resources: Resources, principal: Principal) -> WebhookEndpoint:
    """As an earlier version stored it."""
    old = [{"secret": _OLD_CLEAR, "expires_at": int(utc_now().timestamp()) + 600}]
    return await factories.webhook_endpoint(
        resources, principal, "https://receiver.example/", secret=_CLEAR, old_secrets=old
    )


async def test_no_secret_is_stored_as_it_is(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    body = WebhookEndpointCreate(name="a", url="https://receiver.example/", event_types=["fine_tuning.job.failed"])
    shared: dict[str, Any] = {"sealer": resources.sealer}
    async with resources.write() as session:
        created = await webhooks.create(
            session, principal, made=Attempt(""), body=body, settings=resources.settings, **shared
        )
        made, first = created.endpoint, created.secret
        made, second = await webhooks.rotate_secret(session, principal, endpoint_id=made.id, keep_old=True, **shared)
    async with resources.read() as session:
        row = (await session.execute(text("SELECT * FROM webhook_endpoints"))).mappings().one()
        active = webhook_deliveries.active_secrets(made, await database_now(session), resources.sealer)
    assert active == (second, first)
    stored = json.dumps(dict(row), default=str)
    assert not any(secret[6:] in stored for secret in (first, second))
    assert row["secret_hint"] == webhook_signing.hint(second)


async def test_what_was_stored_in_clear_is_sealed_at_the_first_start(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    made = await in_clear(resources, principal)
    sealed_before = await factories.webhook_endpoint(resources, principal, "https://receiver.example/")
    assert await secret_upkeep.run(resources, Seal.WHAT_IS_CLEAR) == Count(seen=2, clear=1, sealed=1)
    found = await endpoints(resources, principal)
    assert _CLEAR not in found[made.id].secret
    assert _OLD_CLEAR not in json.dumps(found[made.id].old_secrets)
    active = webhook_deliveries.active_secrets(found[made.id], utc_now(), resources.sealer)
    assert active == (_CLEAR, _OLD_CLEAR)
    assert found[sealed_before.id].secret == sealed_before.secret
    assert await secret_upkeep.run(resources, Seal.WHAT_IS_CLEAR) == Count(seen=2)


async def test_until_then_it_is_signed_with(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    made = await in_clear(resources, principal)
    assert webhook_deliveries.active_secrets(made, utc_now(), resources.sealer) == (_CLEAR, _OLD_CLEAR)


async def test_keys_are_changed_one_after_another(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.services.sealed_secrets._AT_ONCE", 2)
    principal, _ = await factories.project(resources)
    old, new = sealing.new_key(), sealing.new_key()
    clear: dict[str, str] = {}
    for number in range(5):
        row = await factories.webhook_endpoint(
            with_keys(resources, old), principal, f"https://receiver.example/{number}"
        )
        clear[row.id] = Sealer([old]).unseal(row.secret)
    assert await secret_upkeep.run(with_keys(resources, new, old), Seal.WITH_THE_FIRST_KEY) == Count(seen=5, sealed=5)
    assert await secret_upkeep.run(with_keys(resources, new, old), Seal.WITH_THE_FIRST_KEY) == Count(seen=5)
    found = await endpoints(resources, principal)
    assert {name: Sealer([new]).unseal(row.secret) for name, row in found.items()} == clear


async def test_what_no_key_opens_stays_as_it_is_and_is_counted(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    made = await factories.webhook_endpoint(resources, principal, "https://receiver.example/")
    lost = with_keys(resources, sealing.new_key())
    for what in Seal:
        assert await secret_upkeep.run(lost, what) == Count(seen=1, unreadable=1)
    assert (await endpoints(resources, principal))[made.id].secret == made.secret


async def test_without_a_key_nothing_in_clear_is_started_with(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    await in_clear(resources, principal)
    with pytest.raises(CannotSeal):
        await secret_upkeep.run(with_keys(resources), Seal.WHAT_IS_CLEAR)
    with pytest.raises(CannotDo, match="Set HONE_SECRET_KEYS"):
        await server._seal_secrets(with_keys(resources), Console(quiet=True))


async def test_without_a_key_no_webhook_is_made(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    body = WebhookEndpointCreate(name="a", url="https://receiver.example/", event_types=["fine_tuning.job.failed"])
    with pytest.raises(InvalidRequest, match="HONE_SECRET_KEYS") as refused:
        async with resources.write() as session:
            await webhooks.create(
                session, principal, made=Attempt(""), body=body, settings=resources.settings, sealer=Sealer([])
            )
    assert refused.value.code == "webhooks_not_available"
    assert await endpoints(resources, principal) == {}


async def test_with_another_key_deliveries_wait_and_none_is_lost(
    resources: Resources, caplog: pytest.LogCaptureFixture
) -> None:
    principal, _ = await factories.project(resources)
    made = await factories.webhook_endpoint(resources, principal, "https://receiver.example/")
    now = utc_now()
    waiting = WebhookDelivery(
        id="wh_1",
        project_id=principal.project_id,
        endpoint_id=made.id,
        event_id="evt_1",
        event_type="fine_tuning.job.failed",
        subject_id="ftjob-1",
        payload="{}",
        created_at=now - timedelta(days=4),  # too long ago for another attempt, if an attempt failed
        attempts=0,
        next_attempt_at=now - timedelta(seconds=1),
    )
    async with resources.write() as session:
        session.add(waiting)
    assert await claim(with_keys(resources, sealing.new_key())) == []
    async with resources.read() as session:
        (left,) = (await session.scalars(scoped(WebhookDelivery, principal))).all()
    assert (left.attempts, left.last_attempt_at) == (0, None)
    assert left.next_attempt_at is not None
    assert timedelta(seconds=50) < left.next_attempt_at - now < timedelta(seconds=70)
    assert left.last_error == webhook_deliveries.UNREADABLE
    assert made.id in caplog.text
    async with resources.write() as session:
        (left,) = (await session.scalars(scoped(WebhookDelivery, principal))).all()
        left.next_attempt_at = now
    (attempt,) = await claim(resources)  # with the right key
    assert (attempt.delivery_id, attempt.number) == ("wh_1", 1)


async def claim(resources: Resources) -> list[webhook_deliveries.Attempt]:
    async with resources.write() as session:
        return await webhook_deliveries.claim(
            session, limit=9, busy_endpoints=(), retries=False, lease_seconds=60, sealer=resources.sealer
        )


async def test_with_another_key_a_test_says_so_and_a_rotation_helps(resources: Resources) -> None:
    principal, _ = await factories.project(resources)
    made = await factories.webhook_endpoint(resources, principal, "https://receiver.example/")
    settings = resources.settings.model_copy(update={"outgoing_allowed_networks": (ip_network("127.0.0.0/8"),)})
    other = Sealer([sealing.new_key()])
    with pytest.raises(Unavailable, match="cannot read the endpoint's signing secret"):
        await webhooks.test(made, event_type="fine_tuning.job.failed", settings=settings, sealer=other)
    async with resources.write() as session:
        rotated, secret = await webhooks.rotate_secret(
            session, principal, endpoint_id=made.id, keep_old=False, sealer=other
        )
    assert webhook_deliveries.active_secrets(rotated, utc_now(), other) == (secret,)


def test_a_migrated_endpoint_keeps_its_secret_and_its_hint(site: Site) -> None:
    """The whole way: a row of the version before, the migration, the first start."""
    url = site.settings().resolved_database_url

    def as_before(connection: Connection) -> None:
        config = migrations.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0014-1")
        at = "2026-11-20 00:00:00+00:00"
        for row in (
            f"organizations (id, name, created_at) VALUES ('org-1', 'a', '{at}')",
            f"projects (id, organization_id, name, created_at) VALUES ('proj_1', 'org-1', 'a', '{at}')",
            "webhook_endpoints (id, project_id, name, url, event_types, secret, old_secrets, created_at, updated_at) "
            f"VALUES ('we_1', 'proj_1', 'a', 'https://r.example', '[]', '{_CLEAR}', '[]', '{at}', '{at}')",
        ):
            connection.execute(text(f"INSERT INTO {row}"))
        command.upgrade(config, "head")

    migrations.run(url, as_before)

    async def start() -> WebhookEndpoint:
        async with open_resources(site.settings()) as resources:
            await server._seal_secrets(resources, Console(quiet=True))
            found = (await endpoints(resources, Principal("", "proj_1", "")))["we_1"]
            assert webhook_deliveries.active_secrets(found, utc_now(), resources.sealer) == (_CLEAR,)
            return found

    found = asyncio.run(start())
    assert found.secret_hint == webhook_signing.hint(_CLEAR)
    assert _CLEAR not in found.secret
