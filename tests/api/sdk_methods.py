"""Every method that the official client has for what Hone offers: how it works, what it misses, what is refused.

`METHODS` names them as they are called on a client. `tests/api/test_every_method.py` drives them all, and finds
methods that a newer client has and this table has not.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from openai import AsyncOpenAI, InvalidWebhookSignatureError
from openai.types.fine_tuning import DpoMethodParam

from app.auth import Principal
from app.db.models import JobStatus
from app.ids import utc_now
from app.resources import Resources
from app.services import webhook_signing
from tests import factories

RESOURCES = ("files", "uploads", "fine_tuning", "models", "webhooks")
ROWS = factories.jsonl()
GRADER: Any = {
    "type": "string_check",
    "name": "check",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
DPO: DpoMethodParam = {"hyperparameters": {"beta": 0.1, "n_epochs": 1}}
_SECRET = webhook_signing.new_secret()
_EVENT = b'{"id": "evt_1", "type": "fine_tuning.job.succeeded", "created_at": 1, "data": {"id": "ftjob-1"}}'


@dataclass(frozen=True)
class Scene:
    """What is there already. `receiver` answers webhooks, `nowhere` does not; models may be shared with `project`."""

    file: str
    queued: str
    done: str
    model: str
    project: str
    receiver: str
    nowhere: str = "http://127.0.0.1:9/"


async def scene(resources: Resources, principal: Principal, *, receiver: str) -> Scene:
    file = await factories.file(resources, principal)
    queued = await factories.job(resources, principal, status=JobStatus.QUEUED)
    done, model = await factories.succeeded_job(resources, principal)
    for step in (12, 24):
        await factories.checkpoint(resources, done, step=step)
    neighbour, _ = await factories.project(resources, beside=principal)
    return Scene(file.id, queued.id, done.id, model.id, neighbour.project_id, receiver)


Call = Callable[[AsyncOpenAI, Scene], Awaitable[Any]]


@dataclass(frozen=True)
class Method:
    """`missing` meets 404; `refused` meets 400, or where it says so another status."""

    works: Call
    missing: Call | None = None
    refused: Call | None = None
    status: int = 400
    is_local: bool = False


async def _file_is_created(client: AsyncOpenAI, _: Scene) -> Any:
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    made = await client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune", expires_after=expiry)
    assert (made.status, made.bytes, made.expires_at) == ("processed", len(ROWS), made.created_at + 3600)
    return made


async def _file_is_deleted(client: AsyncOpenAI, scene: Scene) -> None:
    made = await _file_is_created(client, scene)
    assert (await client.files.delete(made.id)).deleted


async def _file_has_content(client: AsyncOpenAI, scene: Scene) -> None:
    assert (await client.files.content(scene.file)).content == ROWS


async def _file_has_content_by_the_older_name(client: AsyncOpenAI, scene: Scene) -> None:
    with pytest.warns(DeprecationWarning, match=r"\.content"):
        assert await client.files.retrieve_content(scene.file) == ROWS.decode()


async def _content_is_missed_by_the_older_name(client: AsyncOpenAI, _: Scene) -> None:
    with pytest.warns(DeprecationWarning, match=r"\.content"):
        await client.files.retrieve_content("file-none")


def _upload(client: AsyncOpenAI, size: int = len(ROWS)) -> Awaitable[Any]:
    return client.uploads.create(bytes=size, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")


async def _upload_is_created(client: AsyncOpenAI, _: Scene) -> None:
    made = await _upload(client)
    assert (made.status, made.expires_at) == ("pending", made.created_at + 3600)


async def _upload_is_completed(client: AsyncOpenAI, _: Scene) -> Any:
    upload = await _upload(client)
    parts = [ROWS[:100], ROWS[100:]]
    ids = [(await client.uploads.parts.create(upload.id, data=part)).id for part in parts]
    done = await client.uploads.complete(upload.id, part_ids=ids)
    assert (done.status, done.file and done.file.bytes) == ("completed", len(ROWS))
    return done


async def _upload_is_cancelled(client: AsyncOpenAI, _: Scene) -> Any:
    dropped = await client.uploads.cancel((await _upload(client)).id)
    assert dropped.status == "cancelled"
    return dropped


async def _completed_upload_is_cancelled(client: AsyncOpenAI, scene: Scene) -> None:
    await client.uploads.cancel((await _upload_is_completed(client, scene)).id)


async def _upload_lacks_a_part(client: AsyncOpenAI, _: Scene) -> None:
    await client.uploads.complete((await _upload(client)).id, part_ids=["part_none"])


async def _cancelled_upload_gets_a_part(client: AsyncOpenAI, scene: Scene) -> None:
    await client.uploads.parts.create((await _upload_is_cancelled(client, scene)).id, data=ROWS)


async def _job_is_created(client: AsyncOpenAI, scene: Scene) -> Any:
    job = await client.fine_tuning.jobs.create(
        model=factories.BASE_MODEL,
        training_file=scene.file,
        validation_file=scene.file,
        suffix="my model",
        seed=1,
        metadata={"a": "b"},
        method={"type": "dpo", "dpo": DPO},
    )
    assert (job.status, job.method and job.method.type, job.metadata) == ("validating_files", "dpo", {"a": "b"})
    return job


async def _job_is_cancelled(client: AsyncOpenAI, scene: Scene) -> None:
    assert (await client.fine_tuning.jobs.cancel((await _job_is_created(client, scene)).id)).status == "cancelled"


async def _jobs_are_listed(client: AsyncOpenAI, scene: Scene) -> None:
    assert [job.id async for job in client.fine_tuning.jobs.list(limit=1)] == [scene.done, scene.queued]
    assert [job.id async for job in client.fine_tuning.jobs.list(metadata={"a": "c"})] == []


async def _job_is_paused(client: AsyncOpenAI, scene: Scene) -> None:
    assert (await client.fine_tuning.jobs.pause(scene.queued)).to_dict()["status"] == "queued"  # as the server shows it


async def _job_is_resumed(client: AsyncOpenAI, scene: Scene) -> None:
    await client.fine_tuning.jobs.pause(scene.queued)
    assert (await client.fine_tuning.jobs.resume(scene.queued)).status == "queued"


async def _events_are_listed(client: AsyncOpenAI, scene: Scene) -> None:
    job = await _job_is_created(client, scene)
    messages = [event.message async for event in client.fine_tuning.jobs.list_events(job.id, limit=1)]
    assert messages[-1] == f"Created fine-tuning job: {job.id}"


async def _checkpoints_are_listed(client: AsyncOpenAI, scene: Scene) -> None:
    listed = client.fine_tuning.jobs.checkpoints.list(scene.done, limit=1)
    assert [checkpoint.step_number async for checkpoint in listed] == [24, 12]


async def _permission_is_created(client: AsyncOpenAI, scene: Scene) -> Any:
    (made,) = (await client.fine_tuning.checkpoints.permissions.create(scene.model, project_ids=[scene.project])).data
    assert made.project_id == scene.project
    return made


async def _permissions_are_listed(client: AsyncOpenAI, scene: Scene) -> None:
    made = await _permission_is_created(client, scene)
    listed = client.fine_tuning.checkpoints.permissions.list(scene.model, order="ascending", project_id=scene.project)
    assert [permission.id async for permission in listed] == [made.id]


async def _permissions_are_listed_by_the_older_name(client: AsyncOpenAI, scene: Scene) -> None:
    made = await _permission_is_created(client, scene)
    with pytest.warns(DeprecationWarning, match="list method"):
        assert (await client.fine_tuning.checkpoints.permissions.retrieve(scene.model)).last_id == made.id


async def _permissions_are_missed_by_the_older_name(client: AsyncOpenAI, _: Scene) -> None:
    with pytest.warns(DeprecationWarning, match="list method"):
        await client.fine_tuning.checkpoints.permissions.retrieve("ft:none")


async def _permissions_are_refused_by_the_older_name(client: AsyncOpenAI, scene: Scene) -> None:
    with pytest.warns(DeprecationWarning, match="list method"):
        await client.fine_tuning.checkpoints.permissions.retrieve(scene.model, limit=-1)


async def _permission_is_deleted(client: AsyncOpenAI, scene: Scene) -> None:
    made = await _permission_is_created(client, scene)
    permissions = client.fine_tuning.checkpoints.permissions
    assert (await permissions.delete(made.id, fine_tuned_model_checkpoint=scene.model)).deleted


async def _grader_runs(client: AsyncOpenAI, _: Scene) -> None:
    ran = await client.fine_tuning.alpha.graders.run(grader=GRADER, model_sample="42", item={"answer": "42"})
    assert ran.reward == 1


async def _grader_is_valid(client: AsyncOpenAI, _: Scene) -> None:
    checked = (await client.fine_tuning.alpha.graders.validate(grader=GRADER)).grader
    assert checked is not None
    assert checked.to_dict() == GRADER


async def _models_are_listed(client: AsyncOpenAI, scene: Scene) -> None:
    assert {scene.model, factories.BASE_MODEL} <= {model.id async for model in client.models.list()}


async def _model_is_retrieved(client: AsyncOpenAI, scene: Scene) -> None:
    assert (await client.models.retrieve(scene.model)).id == scene.model


async def _model_is_deleted(client: AsyncOpenAI, scene: Scene) -> None:
    assert (await client.models.delete(scene.model)).deleted


async def _endpoint_is_created(client: AsyncOpenAI, scene: Scene) -> Any:
    made = await client.webhooks.create(name="a", url=scene.receiver, event_types=["fine_tuning.job.failed"])
    assert made.signing_secret.startswith("whsec_")
    return made


async def _endpoint_is_retrieved(client: AsyncOpenAI, scene: Scene) -> None:
    made = await _endpoint_is_created(client, scene)
    assert (await client.webhooks.retrieve(made.id)).url == scene.receiver


async def _endpoint_is_updated(client: AsyncOpenAI, scene: Scene) -> None:
    made = await _endpoint_is_created(client, scene)
    assert (await client.webhooks.update(made.id, name="b")).name == "b"


async def _endpoint_gets_a_bad_url(client: AsyncOpenAI, scene: Scene) -> None:
    await client.webhooks.update((await _endpoint_is_created(client, scene)).id, url="ftp://receiver.example/")


async def _endpoints_are_listed(client: AsyncOpenAI, scene: Scene) -> None:
    made = [(await _endpoint_is_created(client, scene)).id for _ in range(2)]
    assert [endpoint.id async for endpoint in client.webhooks.list(limit=1)] == made[::-1]


async def _endpoint_is_deleted(client: AsyncOpenAI, scene: Scene) -> None:
    assert (await client.webhooks.delete((await _endpoint_is_created(client, scene)).id)).deleted


async def _secret_is_rotated(client: AsyncOpenAI, scene: Scene) -> None:
    made = await _endpoint_is_created(client, scene)
    rotated = await client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret


async def _endpoint_is_tested(client: AsyncOpenAI, scene: Scene) -> None:
    made = await _endpoint_is_created(client, scene)
    tested = await client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
    assert (tested.success, tested.status_code) == (True, 200)


async def _unreachable_endpoint_is_tested(client: AsyncOpenAI, scene: Scene) -> None:
    made = await client.webhooks.create(name="a", url=scene.nowhere, event_types=["fine_tuning.job.failed"])
    await client.webhooks.test(made.id, event_type="fine_tuning.job.failed")


async def _event_types_are_listed(client: AsyncOpenAI, _: Scene) -> None:
    assert "fine_tuning.job.succeeded" in (await client.webhooks.event_types.list()).data


def _signed() -> dict[str, str]:
    now = int(utc_now().timestamp())
    return webhook_signing.headers([_SECRET], message_id="wh_1", timestamp=now, body=_EVENT)


async def _event_is_unwrapped(client: AsyncOpenAI, _: Scene) -> None:
    assert client.webhooks.unwrap(_EVENT, _signed(), secret=_SECRET).type == "fine_tuning.job.succeeded"
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(_EVENT + b" ", _signed(), secret=_SECRET)


async def _signature_is_verified(client: AsyncOpenAI, _: Scene) -> None:
    client.webhooks.verify_signature(_EVENT, _signed(), secret=_SECRET)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.verify_signature(_EVENT, _signed(), secret=webhook_signing.new_secret())


METHODS = {
    "files.create": Method(_file_is_created, refused=lambda c, _: c.files.create(file=b"no rows", purpose="fine-tune")),
    "files.retrieve": Method(lambda c, s: c.files.retrieve(s.file), missing=lambda c, _: c.files.retrieve("file-none")),
    "files.list": Method(
        lambda c, _: c.files.list(purpose="fine-tune"), refused=lambda c, _: c.files.list(after="file-none")
    ),
    "files.delete": Method(_file_is_deleted, missing=lambda c, _: c.files.delete("file-none")),
    "files.content": Method(_file_has_content, missing=lambda c, _: c.files.content("file-none")),
    "files.retrieve_content": Method(_file_has_content_by_the_older_name, missing=_content_is_missed_by_the_older_name),
    "files.wait_for_processing": Method(
        lambda c, s: c.files.wait_for_processing(s.file), missing=lambda c, _: c.files.wait_for_processing("file-none")
    ),
    "uploads.create": Method(_upload_is_created, refused=lambda c, _: _upload(c, -1)),
    "uploads.parts.create": Method(
        _upload_is_completed,
        missing=lambda c, _: c.uploads.parts.create("upload_none", data=ROWS),
        refused=_cancelled_upload_gets_a_part,
    ),
    "uploads.complete": Method(
        _upload_is_completed,
        missing=lambda c, _: c.uploads.complete("upload_none", part_ids=["part_none"]),
        refused=_upload_lacks_a_part,
    ),
    "uploads.cancel": Method(
        _upload_is_cancelled,
        missing=lambda c, _: c.uploads.cancel("upload_none"),
        refused=_completed_upload_is_cancelled,
    ),
    "uploads.upload_file_chunked": Method(
        lambda c, _: c.uploads.upload_file_chunked(
            file=ROWS, filename="a.jsonl", bytes=len(ROWS), mime_type="text/jsonl", purpose="fine-tune"
        ),
        refused=lambda c, _: c.uploads.upload_file_chunked(
            file=ROWS, filename="a.jsonl", bytes=len(ROWS), mime_type="text/jsonl", purpose="fine-tune", md5="0" * 32
        ),
    ),
    "fine_tuning.jobs.create": Method(
        _job_is_created,
        refused=lambda c, s: c.fine_tuning.jobs.create(model="none", training_file=s.file),
    ),
    "fine_tuning.jobs.retrieve": Method(
        lambda c, s: c.fine_tuning.jobs.retrieve(s.done), missing=lambda c, _: c.fine_tuning.jobs.retrieve("ftjob-none")
    ),
    "fine_tuning.jobs.list": Method(
        _jobs_are_listed, refused=lambda c, _: c.fine_tuning.jobs.list(metadata={"": "empty"})
    ),
    "fine_tuning.jobs.cancel": Method(
        _job_is_cancelled,
        missing=lambda c, _: c.fine_tuning.jobs.cancel("ftjob-none"),
        refused=lambda c, s: c.fine_tuning.jobs.cancel(s.done),
    ),
    "fine_tuning.jobs.pause": Method(
        _job_is_paused,
        missing=lambda c, _: c.fine_tuning.jobs.pause("ftjob-none"),
        refused=lambda c, s: c.fine_tuning.jobs.pause(s.done),
    ),
    "fine_tuning.jobs.resume": Method(
        _job_is_resumed,
        missing=lambda c, _: c.fine_tuning.jobs.resume("ftjob-none"),
        refused=lambda c, s: c.fine_tuning.jobs.resume(s.done),
    ),
    "fine_tuning.jobs.list_events": Method(
        _events_are_listed,
        missing=lambda c, _: c.fine_tuning.jobs.list_events("ftjob-none"),
        refused=lambda c, s: c.fine_tuning.jobs.list_events(s.done, after="ftevent-none"),
    ),
    "fine_tuning.jobs.checkpoints.list": Method(
        _checkpoints_are_listed,
        missing=lambda c, _: c.fine_tuning.jobs.checkpoints.list("ftjob-none"),
        refused=lambda c, s: c.fine_tuning.jobs.checkpoints.list(s.done, after="ftckpt_none"),
    ),
    "fine_tuning.checkpoints.permissions.create": Method(
        _permission_is_created,
        missing=lambda c, s: c.fine_tuning.checkpoints.permissions.create("ft:none", project_ids=[s.project]),
        refused=lambda c, s: c.fine_tuning.checkpoints.permissions.create(s.model, project_ids=["proj_none"]),
    ),
    "fine_tuning.checkpoints.permissions.list": Method(
        _permissions_are_listed,
        missing=lambda c, _: c.fine_tuning.checkpoints.permissions.list("ft:none"),
        refused=lambda c, s: c.fine_tuning.checkpoints.permissions.list(s.model, limit=-1),
    ),
    "fine_tuning.checkpoints.permissions.retrieve": Method(
        _permissions_are_listed_by_the_older_name,
        missing=_permissions_are_missed_by_the_older_name,
        refused=_permissions_are_refused_by_the_older_name,
    ),
    "fine_tuning.checkpoints.permissions.delete": Method(
        _permission_is_deleted,
        missing=lambda c, s: c.fine_tuning.checkpoints.permissions.delete(
            "cp_none", fine_tuned_model_checkpoint=s.model
        ),
    ),
    "fine_tuning.alpha.graders.run": Method(
        _grader_runs,
        refused=lambda c, _: c.fine_tuning.alpha.graders.run(grader=GRADER | {"operation": "is"}, model_sample="42"),
    ),
    "fine_tuning.alpha.graders.validate": Method(
        _grader_is_valid, refused=lambda c, _: c.fine_tuning.alpha.graders.validate(grader=GRADER | {"type": "none"})
    ),
    "models.list": Method(_models_are_listed),
    "models.retrieve": Method(_model_is_retrieved, missing=lambda c, _: c.models.retrieve("ft:none")),
    "models.delete": Method(
        _model_is_deleted,
        missing=lambda c, _: c.models.delete("ft:none"),
        refused=lambda c, _: c.models.delete(factories.BASE_MODEL),
        status=403,
    ),
    "webhooks.create": Method(
        _endpoint_is_created,
        refused=lambda c, _: c.webhooks.create(
            name="a", url="https://user:word@receiver.example/", event_types=["fine_tuning.job.failed"]
        ),
    ),
    "webhooks.retrieve": Method(_endpoint_is_retrieved, missing=lambda c, _: c.webhooks.retrieve("we_none")),
    "webhooks.update": Method(
        _endpoint_is_updated,
        missing=lambda c, _: c.webhooks.update("we_none", name="b"),
        refused=_endpoint_gets_a_bad_url,
    ),
    "webhooks.list": Method(_endpoints_are_listed, refused=lambda c, _: c.webhooks.list(after="we_none")),
    "webhooks.delete": Method(_endpoint_is_deleted, missing=lambda c, _: c.webhooks.delete("we_none")),
    "webhooks.rotate_secret": Method(_secret_is_rotated, missing=lambda c, _: c.webhooks.rotate_secret("we_none")),
    "webhooks.test": Method(
        _endpoint_is_tested,
        missing=lambda c, _: c.webhooks.test("we_none", event_type="batch.failed"),
        refused=_unreachable_endpoint_is_tested,
    ),
    "webhooks.event_types.list": Method(_event_types_are_listed),
    "webhooks.unwrap": Method(_event_is_unwrapped, is_local=True),
    "webhooks.verify_signature": Method(_signature_is_verified, is_local=True),
}
