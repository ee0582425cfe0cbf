"""openapi/openapi.yaml covers what openapi/openai-subset.yaml promises, operation by operation."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.schema_cover import Named, gaps, unknown

_DIRECTORY = Path(__file__).resolve().parents[1] / "openapi"
_PROMISED: dict[str, Any] = yaml.safe_load((_DIRECTORY / "openai-subset.yaml").read_text())
_OURS: dict[str, Any] = yaml.safe_load((_DIRECTORY / "openapi.yaml").read_text())
_OPERATIONS = [(path, method) for path, methods in _PROMISED["paths"].items() for method in methods]


def violations(ours: dict[str, Any], path: str, method: str) -> list[str]:
    """What is promised of an operation and not kept."""
    by_shape = {_shape(name): item for name, item in ours["paths"].items()}
    operation = by_shape.get(_shape(path), {}).get(method)
    if operation is None:
        return ["there is no such operation"]
    promised = _PROMISED["paths"][path][method]
    return [
        *_of_parameters(ours, operation, promised),
        *_of_request(ours, operation, promised),
        *_of_answer(ours, operation, promised),
    ]


def _shape(path: str) -> str:
    """What a parameter is called is nobody's business but ours."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def _of_parameters(ours: dict[str, Any], operation: dict[str, Any], promised: dict[str, Any]) -> list[str]:
    known = {(one["in"], one["name"]): one for one in operation.get("parameters", ())}
    found: list[str] = []
    for one in promised.get("parameters", ()):
        mine = known.get((one["in"], one["name"]))
        if mine is None:
            found.append(f"parameter {one['name']}: unknown")
            continue
        found += gaps(Named(mine["schema"], ours), Named(one["schema"], _PROMISED), f"parameter {one['name']}")
        if "default" in one["schema"] and mine["schema"].get("default") != one["schema"]["default"]:
            found.append(f"parameter {one['name']}: the default is {mine['schema'].get('default')}")
    given = {(one["in"], one["name"]) for one in promised.get("parameters", ())}
    found += [
        f"parameter {name}: required"
        for (place, name), one in known.items()
        if place != "path" and one.get("required") and (place, name) not in given
    ]
    return found


def _of_request(ours: dict[str, Any], operation: dict[str, Any], promised: dict[str, Any]) -> list[str]:
    """All that a client of OpenAI's may send is taken, and no field of it is unknown."""
    body = operation.get("requestBody", {})
    if "requestBody" not in promised:
        return ["a body is required"] if body.get("required") else []
    found: list[str] = []
    for kind, content in promised["requestBody"]["content"].items():
        if kind not in body.get("content", {}):
            found.append(f"request: no {kind}")
            continue
        taken, sent = Named(body["content"][kind]["schema"], ours), Named(content["schema"], _PROMISED)
        found += gaps(taken, sent, "request") + unknown(taken, sent, "request")
    return found


def _of_answer(ours: dict[str, Any], operation: dict[str, Any], promised: dict[str, Any]) -> list[str]:
    """All that we answer is what a client of OpenAI's expects, and no field that it knows is missing."""
    found: list[str] = []
    for status, answer in promised["responses"].items():
        expected = Named(answer, _PROMISED).resolved().schema["content"]
        mine = operation["responses"].get(status, {}).get("content", {})
        for kind, content in expected.items():
            if kind not in mine:
                found.append(f"answer {status}: no {kind}")
            elif "schema" in content:
                read, sent = Named(content["schema"], _PROMISED), Named(mine[kind]["schema"], ours)
                found += gaps(read, sent, "answer") + unknown(sent, read, "answer")
    error = Named({"$ref": "#/components/schemas/Error"}, _PROMISED)
    for status in ("400", "401", "default"):
        schema = operation["responses"].get(status, {}).get("content", {}).get("application/json", {}).get("schema")
        if schema is None:
            found.append(f"answer {status}: not described")
        else:
            found += gaps(error, Named(schema, ours), f"answer {status}")
    return found


@pytest.mark.parametrize(("path", "method"), _OPERATIONS, ids=[f"{method} {path}" for path, method in _OPERATIONS])
def test_what_is_promised_is_there(path: str, method: str) -> None:
    assert violations(_OURS, path, method) == []


def test_the_check_finds_what_is_broken() -> None:
    """Each promise broken by hand."""

    def broken(change: Any, method: str = "post") -> list[str]:
        changed = deepcopy(_OURS)
        change(changed["components"]["schemas"], changed["paths"]["/v1/fine_tuning/jobs"][method])
        return violations(changed, "/v1/fine_tuning/jobs", method)

    schemas = _OURS["components"]["schemas"]
    assert {"JobCreate", "JobRead", "Hyperparameters"} <= set(schemas)
    assert broken(lambda schemas, _: schemas["JobCreate"]["required"].append("seed")) == [
        "request.seed: may be absent, and is required"
    ]
    assert broken(lambda schemas, _: schemas["JobCreate"]["properties"].pop("suffix")) == ["request.suffix: unknown"]
    assert broken(lambda schemas, _: schemas["JobRead"]["properties"].pop("seed"))[-1] == "answer.seed: unknown"
    assert broken(lambda schemas, _: schemas["JobRead"]["required"].remove("error")) == [
        "answer.error: may be absent, and is required"
    ]
    assert broken(lambda schemas, _: schemas["JobRead"]["properties"]["status"]["enum"].append("asleep")) == [
        "answer.status: ['asleep'], where ['cancelled', 'failed', 'paused', 'queued', 'running', 'succeeded', "
        "'validating_files'] is taken"
    ]
    assert broken(lambda schemas, _: schemas["JobRead"]["properties"].update(seed={"type": "number"})) == [
        "answer.seed: kind number, where integer is taken"
    ]

    def tighter(schemas: Any, _: Any) -> None:
        schemas["Hyperparameters"]["properties"]["n_epochs"]["anyOf"][1]["maximum"] = 10

    assert "request.hyperparameters.n_epochs: maximum 50, where 10 is taken" in broken(tighter)
    assert broken(lambda _, operation: operation["parameters"].pop(1), "get")
    assert broken(lambda _, operation: operation["responses"].pop("401")) == ["answer 401: not described"]
