"""Around every request: limits, its id, OpenAI's headers, a line in the access log, the answer to unforeseen errors."""

import asyncio
import logging
import re
import time

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import errors, origins
from app.errors import ApiError, InvalidRequest, TooLarge
from app.ids import new_request_id
from app.observability import request_id
from app.origin import origin

_log = logging.getLogger(__name__)
_access = logging.getLogger("app.access")
_MAX_HEADER_BYTES = 64 * 1024
_MAX_BODY_BYTES = 1 << 20
_IDLE_SECONDS = 30.0
_SLOWEST_BYTES_PER_SECOND = 1000
_STREAMED = re.compile(r"/v1/(files|uploads/[^/]+/parts)")  # whose size is limited while they stream to disk


class HeadersTooLarge(ApiError):
    status = 431


class RequestContext:
    """Plain ASGI, so that streamed bodies pass through untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own_id = new_request_id()
        token = request_id.set(own_id)
        origin.set(origins.of(scope))
        began, status = time.perf_counter(), 0
        state = scope.setdefault("state", {})

        def elapsed_ms() -> float:
            return (time.perf_counter() - began) * 1000

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = own_id
                headers["openai-version"] = "2020-10-01"
                headers["openai-processing-ms"] = str(round(elapsed_ms()))
                if organization_id := state.get("organization_id"):
                    headers["openai-organization"] = organization_id
                if allowance := state.get("allowance"):
                    headers.update(allowance.headers())
            await send(message)

        try:
            if refusal := _refusal(scope):
                await errors.respond(refusal)(scope, receive, send_with_headers)
            else:
                await self._app(scope, _limited(scope, receive), send_with_headers)
        except ClientDisconnect:
            _log.info("the client went away")
        except Exception:
            _log.exception("unforeseen error")
            if not status:  # a response under way can only be broken off, which returning does
                await errors.internal_error()(scope, receive, send_with_headers)
        finally:
            _access.info("%s %s %d %.1f ms", scope["method"], _printable_path(scope), status, elapsed_ms())
            request_id.reset(token)


def _limited(scope: Scope, receive: Receive) -> Receive:
    """A body may be neither endless nor endlessly slow. The exceptions are those that FastAPI lets through."""
    received, waited_seconds, is_complete = 0, 0.0, False

    async def receive_within_limits() -> Message:
        nonlocal received, waited_seconds, is_complete
        left_seconds = _IDLE_SECONDS + received / _SLOWEST_BYTES_PER_SECOND - waited_seconds
        began = time.perf_counter()
        try:
            async with asyncio.timeout(None if is_complete else min(_IDLE_SECONDS, left_seconds)):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, headers={"Connection": "close"}) from error
        waited_seconds += time.perf_counter() - began  # for the client; while a piece is stored it cannot send
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if received > _MAX_BODY_BYTES and not _STREAMED.fullmatch(scope["path"]):
                raise HTTPException(413)
        return message

    return receive_within_limits


def _refusal(scope: Scope) -> ApiError | None:
    """What the HTTP server lets through."""
    if sum(len(name) + len(value) for name, value in scope["headers"]) > _MAX_HEADER_BYTES:
        return HeadersTooLarge("The request's headers are too large.")
    if scope["http_version"] == "1.1" and "host" not in Headers(scope=scope):
        return InvalidRequest("The request has no Host header.")
    declared = Headers(scope=scope).get("content-length", "")
    if not _STREAMED.fullmatch(scope["path"]) and declared.isdecimal() and int(declared) > _MAX_BODY_BYTES:
        return TooLarge("The request's body is too large.")
    return None


def _printable_path(scope: Scope) -> str:
    """As sent, still percent-encoded: a decoded line feed could forge a log line. Queries are not logged."""
    return scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:200]
