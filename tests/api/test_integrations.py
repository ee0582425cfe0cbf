"""`integrations` and `hone.trackers` on the wire."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import BadRequestError

from app.db.models import Job
from tests import factories
from tests.backends import Site
from tests.conftest import Tenant, serve, tenant_of

WANDB: Any = {"type": "wandb", "wandb": {"project": "my-project", "tags": ["mine"]}}
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
async def tracking_tenant(site: Site) -> AsyncIterator[Tenant]:
    """Of a server that has every tracker."""
    settings = site.settings(
        wandb_api_key=KEY, mlflow_tracking_uri="http://127.0.0.1:1", tensorboard_directory=site.data / "board"
    )
    for served in serve(settings):
        async with tenant_of(served) as made:
            yield made


async def create(tenant: Tenant, **fields: Any):
    training = await factories.file(tenant.resources, tenant.principal)
    return await tenant.client.fine_tuning.jobs.create(model=factories.BASE_MODEL, training_file=training.id, **fields)


async def test_what_was_asked_is_shown_with_the_run(tracking_tenant: Tenant) -> None:
    trackers = {"mlflow": {"experiment": "search"}, "tensorboard": {}}
    job = await create(tracking_tenant, integrations=[WANDB], extra_body={"hone": {"trackers": trackers}})

    settings = {"project": "my-project", "name": None, "entity": None, "tags": ["mine"]}
    assert [one.to_dict() for one in job.integrations or []] == [
        {"type": "wandb", "wandb": {**settings, "run_id": None}}
    ]
    async with tracking_tenant.resources.write() as session:
        row = await session.get_one(Job, job.id)
        row.tracker_runs = {"wandb": {"run_id": job.id, "url": "http://w", "error": None}, "mlflow": {"error": "away"}}
    shown = (await tracking_tenant.client.fine_tuning.jobs.retrieve(job.id)).to_dict()
    assert shown["integrations"][0]["wandb"]["run_id"] == job.id  # pyright: ignore
    assert shown["hone"]["trackers"] == [  # pyright: ignore
        {"name": "wandb", "run_id": job.id, "url": "http://w", "error": None},
        {"name": "mlflow", "run_id": None, "url": None, "error": "away"},
        {"name": "tensorboard", "run_id": None, "url": None, "error": None},
    ]
    assert KEY not in str(shown)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"integrations": [{"type": "mlflow", "wandb": {"project": "p"}}]}, "integrations[0].type"),
        ({"integrations": [WANDB, {"type": "wandb", "wandb": {}}]}, "integrations[1].wandb.project"),
        ({"integrations": [WANDB] * 6}, "integrations"),
        ({"integrations": [{"type": "wandb"}]}, "integrations[0].wandb"),
        ({"extra_body": {"hone": {"trackers": {"aim": {}}}}}, "hone.trackers.aim"),
    ],
)
async def test_what_is_no_integration_is_refused(tracking_tenant: Tenant, fields: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        await create(tracking_tenant, **fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param", "setting"),
    [
        ({"integrations": [WANDB]}, "integrations[0]", "HONE_WANDB_API_KEY"),
        ({"extra_body": {"hone": {"trackers": {"mlflow": {}}}}}, "hone.trackers.mlflow", "HONE_MLFLOW_TRACKING_URI"),
        (
            {"extra_body": {"hone": {"trackers": {"tensorboard": {}}}}},
            "hone.trackers.tensorboard",
            "HONE_TENSORBOARD_DIRECTORY",
        ),
    ],
)
async def test_what_the_server_cannot_feed_is_refused(tenant: Tenant, fields: Any, param: str, setting: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        await create(tenant, **fields)
    assert (refused.value.code, refused.value.param) == ("integration_not_available", param)
    assert setting in refused.value.message


async def test_none_is_none(tenant: Tenant) -> None:
    for nothing in ([], None):
        assert (await create(tenant, integrations=nothing)).integrations == []
