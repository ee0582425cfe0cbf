"""The examples of the OpenAPI document are what they show."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

from app import main, schemas
from app.schemas.common import Wire


def _of(kind: type[Wire]) -> Iterator[type[Wire]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _of(inner)


def _shown() -> list[tuple[type[Wire], dict[str, Any]]]:
    for module in pkgutil.iter_modules(schemas.__path__):
        importlib.import_module(f"app.schemas.{module.name}")
    found = []
    for kind in _of(Wire):
        extra: Any = kind.model_config.get("json_schema_extra") or {}
        found += [(kind, example) for example in extra.get("examples", [])]
    return found


@pytest.mark.parametrize(("kind", "example"), [pytest.param(*one, id=one[0].__name__) for one in _shown()])
def test_an_example_is_whole_and_valid(kind: type[Wire], example: dict[str, Any]) -> None:
    parsed = kind.model_validate_json(json.dumps(example))
    assert parsed.model_dump(mode="json", exclude_unset=True) == example


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
