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


def test_every_body_and_the_main_objects_show_an_example() -> None:
    document = main.describe()
    components = document["components"]["schemas"]
    bodies = {
        operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for path in document["paths"].values()
        for operation in path.values()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
        and "$ref" in operation["requestBody"]["content"]["application/json"]["schema"]
    }
    assert "JobCreate" in bodies
    main_objects = {
        "FileRead",
        "JobRead",
        "UploadRead",
        "CheckpointRead",
        "ModelRead",
        "PermissionRead",
        "ErrorEnvelope",
    }
    without = {name for name in bodies | main_objects if not components[name].get("examples")}
    assert without == {"WebhookEndpointUpdate"}, "all of whose fields are optional"
