"""Requests made up from the OpenAPI document: no 5xx, and no answer that the document does not describe.

CI makes up a few hundred, always the same ones; `make fuzz` thousands, each time others. All of schemathesis' checks
are on.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import settings as with_settings
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode

from app import main
from app.resources import open_resources
from app.services import keys
from app.settings import Settings
from tests import factories
from tests.backends import Backends
from tests.conftest import serve

_CASES = int(os.environ.get("HONE_TEST_FUZZ", "10"))  # of each operation
_IS_LONG = "HONE_TEST_FUZZ" in os.environ

schema = schemathesis.openapi.from_dict(main.describe())
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
schema.config.generation.allow_extra_parameters = False  # parameters that we do not know are ignored, as at OpenAI
# A schema cannot say which files are in the project, or which model may be named: what it allows may be refused.
schema.config.checks.positive_data_acceptance.expected_statuses.append("400")
schema.config.checks.negative_data_rejection.expected_statuses.append("413")  # a list too long may be a body too long


@dataclass(frozen=True)
class Target:
    url: str
    key: str
    admin_key: str
    operator_key: str

    def key_for(self, path: str) -> str:
        if path.startswith("/v1/admin"):
            return self.operator_key
        return self.admin_key if path.startswith("/v1/organization") else self.key


@pytest.fixture(scope="module")
def target(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server with a project that has something of everything."""
    made = backends.new(tmp_path_factory.mktemp("fuzz") / "data")
    for served in serve(made.settings(max_file_bytes=1 << 20)):
        yield Target(served.url, *asyncio.run(_fill(served.settings)))


async def _fill(settings: Settings) -> tuple[str, str, str]:
    """Keys of a project, of its organization, and of the operator."""
    async with open_resources(settings) as resources:
        principal, key = await factories.project(resources)
        await factories.base_model(resources)
        await factories.file(resources, principal)
        job, _ = await factories.succeeded_job(resources, principal)
        await factories.add_events(resources, job.id, 3)
        async with resources.write() as session:
            operator_key = await keys.add_to_default_project(session, name="operator")
        return key, await factories.admin_key(resources, principal), operator_key


@schema.parametrize()
@with_settings(
    max_examples=_CASES,
    derandomize=not _IS_LONG,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
def test_the_document_is_the_whole_truth(case: schemathesis.Case, target: Target) -> None:
    headers = {"Authorization": f"Bearer {target.key_for(case.path)}"}
    # `DELETE /v1/models/a/adapter` is allowed: it means a model of that name, as names may hold slashes.
    excluded: list[Any] = (
        [CHECKS.get_one("allow_header_conformance")] if case.path == "/v1/models/{model}/adapter" else []
    )
    if case.method == "GET":  # what is wrong with such a case may be that it has a parameter more, which is ignored
        excluded.append(CHECKS.get_one("negative_data_rejection"))
    case.call_and_validate(base_url=target.url, headers=headers, excluded_checks=excluded, timeout=30)
