"""A project with one of everything that has an id, in an organization with people and keys."""

import random
import re
from dataclasses import dataclass

from app.auth import Principal, Role
from app.db.audit_models import Action, AuditEntry
from app.db.models import CheckpointPermission, Event, Upload, UploadPart
from app.db.queries import scoped, server_rows
from app.db.tenancy_models import AdminApiKey
from app.db.webhook_models import WebhookDelivery
from app.ids import new_id, utc_now
from app.resources import Resources
from app.services import audit, organizations, project_keys, projects, service_accounts, users
from app.storage import keys as storage_keys
from tests import factories


@dataclass(frozen=True)
class World:
    principal: Principal
    ids: dict[str, str]  # by kind, as `tests.api.tenancy_table` calls them


async def build(resources: Resources, *, beside: Principal | None = None) -> World:
    """With organization, users and admin key of its own, or beside another project of the same ones."""
    principal, _ = await factories.project(resources, beside=beside)
    friend, _ = await factories.project(resources, beside=principal)
    job, model = await factories.succeeded_job(resources, principal)
    await factories.add_events(resources, job.id, 1)
    checkpoint = await factories.checkpoint(resources, job, step=1)
    endpoint = await factories.webhook_endpoint(resources, principal, "https://hooks.example.com/hone")
    ids = {
        "organization": principal.organization_id,
        "project": principal.project_id,
        "file": (await factories.file(resources, principal)).id,
        "job": job.id,
        "model": model.id,
        "checkpoint": checkpoint.id,
        "checkpoint model": checkpoint.model_name,
        "endpoint": endpoint.id,
        **await _rows(resources, principal, shared=model.id, with_project=friend.project_id, endpoint=endpoint.id),
        **await _people(resources, principal),
    }
    return World(principal, ids)


async def _rows(
    resources: Resources, principal: Principal, *, shared: str, with_project: str, endpoint: str
) -> dict[str, str]:
    now = utc_now()
    upload, part, project_id = new_id("upload_"), new_id("part_"), principal.project_id
    held = await factories.stored(resources, storage_keys.upload_part(project_id, upload, part), b"{}\n")
    delivery = WebhookDelivery(
        id=new_id("whd_"),
        project_id=project_id,
        endpoint_id=endpoint,
        event_id=new_id("evt_"),
        event_type="fine_tuning.job.succeeded",
        subject_id="ftjob-x",
        payload="{}",
        created_at=now,
        delivered_at=now,
    )
    permission = CheckpointPermission(
        id=new_id("cp_"), project_id=project_id, model_name=shared, shared_with_id=with_project, created_at=now
    )
    async with resources.write() as session:
        session.add_all([delivery, permission])
        session.add(
            Upload(
                id=upload,
                project_id=project_id,
                filename="train.jsonl",
                purpose="fine-tune",
                bytes=3,
                num_parts=1,
                received_bytes=3,
                created_at=now,
                expires_at=now.replace(year=now.year + 1),
            )
        )
        await session.flush()
        session.add(
            UploadPart(
                id=part,
                project_id=project_id,
                upload_id=upload,
                bytes=3,
                sha256=held.sha256,
                storage_key=held.key,
                created_at=now,
            )
        )
        event = (await session.scalars(scoped(Event, principal))).first()
        assert event is not None
        entry = AuditEntry(**audit.entry(principal, Action.FILE_CREATED, "file-x"))
        session.add(entry)
    return {
        "upload": upload,
        "part": part,
        "permission": permission.id,
        "delivery": delivery.id,
        "event": event.id,
        "audit entry": entry.id,
    }


async def _people(resources: Resources, principal: Principal) -> dict[str, str]:
    email = f"{new_id('ada').lower()}@example.com"
    await factories.admin_key(resources, principal)
    async with resources.write() as session:
        organization = await organizations.get(session, organization_id=principal.organization_id)
        administrator = organizations.administrator(organization)
        project = await projects.get(session, administrator, project_id=principal.project_id)
        member = await users.add_member(session, administrator, project, role=Role.MEMBER, email=email)
        account = await service_accounts.create(session, project, name="nightly")
        key, _ = await project_keys.issue(
            session, administrator, project, name="ada's", role=Role.OWNER, owner=member.row
        )
        of_organization = server_rows(AdminApiKey).where(AdminApiKey.organization_id == organization.id)
        admin_key = (await session.scalars(of_organization)).first()
        assert admin_key is not None
    return {"user": member.user.id, "email": email, "account": account.id, "key": key.id, "admin key": admin_key.id}


def like(known: str, *, seed: int) -> str:
    """An id of the same shape and length that nothing has."""
    longest = max(re.findall(r"[A-Za-z0-9]+", known), key=len)
    other = "".join(random.Random(seed).choices("abcdefghijkmnpqrstuvwxyz23456789", k=len(longest)))
    return known.replace(longest, other)
