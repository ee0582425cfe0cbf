"""The one place that turns errors into OpenAI's envelope."""

import errno
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from app.errors import ApiError, InvalidRequest, NotFound, TooLarge, Unavailable
from app.observability import request_id
from app.schemas.common import ErrorEnvelope
from app.storage.base import StorageUnavailable

_log = logging.getLogger(__name__)
_KINDS = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array", dict: "an object"}
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}

_MAX_PATH_CHARACTERS = 150
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

# For the OpenAPI document.
RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorEnvelope, "description": "The request is not valid; `param` names the field at fault."},
    401: {"model": ErrorEnvelope, "description": "No API key, or not one of this server."},
    404: {"model": ErrorEnvelope, "description": "There is no such thing in this project."},
    "default": {"model": ErrorEnvelope, "description": "Any other error."},
}


def install(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(StorageUnavailable, _on_lost_storage)
    app.add_exception_handler(OSError, _on_os_error)


def respond(error: ApiError) -> Response:
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return JSONResponse({"error": body}, status_code=error.status, headers=error.headers)


def internal_error() -> Response:
    message = (
        "The server had an error while processing your request. "
        f"Its log tells more under the request id {request_id.get()}."
    )
    return JSONResponse({"error": {"message": message, "type": "server_error", "param": None, "code": None}}, 500)


async def _on_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return respond(error)


async def _on_invalid_request(_request: Request, error: Exception) -> Response:
    """Only the first fault is told, as at OpenAI. The faulty value itself is never repeated."""
    assert isinstance(error, RequestValidationError)
    return respond(_explain(error.errors()[0]))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What is refused before a route is reached: unknown paths and methods; bodies too long, too slow or not JSON."""
    assert isinstance(error, HTTPException)
    headers: Mapping[str, str] = error.headers or {}
    method = request.method if request.method.isalpha() else "?"
    path = request.scope.get("raw_path", b"").decode("ascii", "replace")[:_MAX_PATH_CHARACTERS]
    if error.status_code == 404:
        return respond(NotFound(f"Invalid URL ({method} {path})", code="unknown_url"))
    if error.status_code == 405:
        headers = {**headers, "Allow": ", ".join(_allowed(request))}
        refusal = InvalidRequest(f"Not allowed to {method} on {path}.", code="method_not_allowed", headers=headers)
    elif error.status_code == 408:
        refusal = InvalidRequest("The request's body did not arrive in time.", headers=headers)
    elif error.status_code == 413:
        refusal = TooLarge("The request's body is too large.", headers=headers)
    else:
        refusal = InvalidRequest("We could not parse the body of your request.", headers=headers)
    refusal.status = error.status_code
    return respond(refusal)


def _allowed(request: Request) -> list[str]:
    """The methods that the path has; Starlette names only those of its first route, and here each method is one."""
    routes: Sequence[BaseRoute] = request.app.routes

    def has(method: str) -> bool:
        return any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in routes)

    return [method for method in _METHODS if has(method)]


async def _on_lost_storage(_request: Request, error: Exception) -> Response:
    _log.warning("storage is not available", exc_info=error)
    return respond(Unavailable("The storage for files is not available at the moment. Please try again."))


async def _on_os_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # the last: a limit on this process's files
        raise error
    _log.error("the disk is full", exc_info=error)
    return respond(Unavailable("The server's disk is full.", retry_after_seconds=60))


def _explain(fault: Mapping[str, Any]) -> InvalidRequest:
    kind, place, value = fault["type"], fault["loc"], fault.get("input")
    if kind == "json_invalid":
        return InvalidRequest("We could not parse the JSON body of your request.")
    param = _param(place)
    if not param:
        return InvalidRequest("The request's body must be a JSON object, sent with Content-Type: application/json.")
    if kind == "missing":
        code = "missing_required_parameter"
        return InvalidRequest(f"Missing required parameter: '{param}'.", code=code, param=param)
    if kind == "extra_forbidden":  # only in Hone's own object: everything else is ignored, as at OpenAI
        return InvalidRequest(f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
    if kind in _EXPECTED:
        got = "null" if value is None else _KINDS.get(type(value), "another type")
        sentence = f"Invalid type for '{param}': expected {_EXPECTED[kind]}, but got {got} instead."
        return InvalidRequest(sentence, code="invalid_type", param=param)
    if kind in ("too_long", "too_short"):  # pydantic's own sentence speaks of validation, and of items in a text
        limit = f"most {fault['ctx']['max_length']}" if kind == "too_long" else f"least {fault['ctx']['min_length']}"
        reason = f"expected at {limit} {'characters' if isinstance(value, str) else 'items'}"
    elif kind == "bool_parsing":
        reason = "expected true or false"
    else:
        reason = fault["msg"].removeprefix("Input should be ")
        reason = reason if reason.startswith(("expected", "String")) else f"expected {reason}"
    return InvalidRequest(f"Invalid value for '{param}': {reason}.", code="invalid_value", param=param)


def _param(place: tuple[int | str, ...]) -> str:
    """("body", "metadata", "a") as `metadata.a`. Keys of a client's own are cut short. What is in brackets is no
    field: pydantic's word for keys, and the tags of unions."""
    inner = (
        [step for step in place[1:] if not str(step).startswith("[")]
        if place[0] in ("body", "query", "path")
        else list(place)
    )
    dotted = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:64]}" for step in inner).lstrip(".")
    return "".join(c if c.isprintable() else "?" for c in dotted)
