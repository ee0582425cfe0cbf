"""The examples of docs/graders.md give what the page says."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.test_graders import judge, worker_of
from tests.backends import Backends
from tests.conftest import Served, Tenant, serve, tenant_of
from tests.servers.receiver import receiving

_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "graders.md").read_text()
_EXAMPLES = [
    (json.loads(body), float(reward))
    for body, reward in re.findall(r"```json\n(.*?)```\n\nReward: ([\d.]+)", _PAGE, re.DOTALL)
]


@pytest.fixture(scope="module")
def offering_all(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    site = backends.new(tmp_path_factory.mktemp("page") / "data")
    with receiving(judge) as model:
        yield from serve(site.settings(python_graders=True, grader_base_url=f"{model.url}/v1"))


@pytest.fixture
async def author(offering_all: Served) -> AsyncIterator[Tenant]:
    async with tenant_of(offering_all) as made:
        yield made


def test_each_json_block_is_an_example() -> None:
    kinds = {body["grader"]["type"] for body, _ in _EXAMPLES}
    assert kinds == {"string_check", "text_similarity", "multi", "python"}
    assert len(_EXAMPLES) == _PAGE.count("```json")


@pytest.mark.parametrize(("body", "reward"), _EXAMPLES, ids=lambda value: str(value)[:40])
async def test_an_example_gives_what_the_page_says(author: Tenant, body: dict[str, Any], reward: float) -> None:
    async with author.http() as http:
        if body["grader"]["type"] == "python":
            async with worker_of(author):
                answer = await http.post("/v1/fine_tuning/alpha/graders/run", json=body)
        else:
            answer = await http.post("/v1/fine_tuning/alpha/graders/run", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["hone"]["errors"] == []
    assert round(answer.json()["reward"], 4) == reward


async def test_the_page_names_every_flag(author: Tenant) -> None:
    async with author.http() as http:
        answer = (await http.post("/v1/fine_tuning/alpha/graders/run", json=_EXAMPLES[0][0])).json()
    flags = {name for name, value in answer["metadata"]["errors"].items() if value is False}
    assert [name for name in sorted(flags) if f"`{name}`" not in _PAGE] == []
