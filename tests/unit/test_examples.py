"""The examples of the OpenAPI document are what they show."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from app import main, schemas
from app.schemas import examples
from app.schemas.common import Wire


def _kinds(root: type[Wire]) -> Iterator[type[Wire]]:
    for kind in root.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _shown() -> list[tuple[type[Wire], dict[str, Any]]]:
    for module in pkgutil.iter_modules(schemas.__path__):
        importlib.import_module(f"app.schemas.{module.name}")
    of = examples.of_kinds(Wire)
    return [(kind, example) for kind in _kinds(Wire) for example in of.get(kind.__name__, [])]


@pytest.mark.parametrize(("kind", "example"), [pytest.param(*one, id=one[0].__name__) for one in _shown()])
def test_an_example_is_whole_and_valid(kind: type[Wire], example: dict[str, Any]) -> None:
    parsed = kind.model_validate_json(json.dumps(example))
    assert parsed.model_dump(mode="json", exclude_unset=True) == example


def test_the_documents_examples_are_valid_by_its_own_schemas() -> None:
    document = main.describe()
    told = {
        name: schema["examples"] for name, schema in document["components"]["schemas"].items() if "examples" in schema
    }
    assert "JobRead" in told
    for name, shown in told.items():
        for example in shown:
            jsonschema_rs.validate({**document, "$ref": f"#/components/schemas/{name}"}, example)


def test_every_operation_shows_what_is_sent_and_answered() -> None:
    document = main.describe()
    components = document["components"]["schemas"]

    def shows(media: dict[str, Any]) -> bool:
        schema = media.get("schema", {})
        named = [part["$ref"] for part in schema.get("anyOf", [schema]) if "$ref" in part]
        return "example" in media or any(components[name.rpartition("/")[2]].get("examples") for name in named)

    seen, without = 0, set[str]()
    for path in document["paths"].values():
        for operation in path.values():
            content = [operation.get("requestBody", {}).get("content", {})]
            content += [answer.get("content", {}) for answer in operation["responses"].values()]
            for kind, media in (pair for medium in content for pair in medium.items()):
                seen += 1
                if not shows(media) and kind != "application/octet-stream":
                    without.add(f"{operation['operationId']} {kind}")
    assert seen > 100
    assert without == set()
