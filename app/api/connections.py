"""What one connection may take: how long for its headers, how many, how slowly a body is read or an answer taken.

Uvicorn waits without end for the rest of a request's headers, for the rest of a body that nobody reads any more, and
for a client that does not read. Each of them would keep a connection, and with enough of them the server, for ever.
"""

import asyncio
import logging
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api import errors
from app.errors import InvalidRequest, Unavailable
from app.ids import new_request_id

_log = logging.getLogger(__name__)
_HEAD_SECONDS = 20.0
_MAX_HEAD_BYTES = 96 * 1024  # the request line and all headers, of which `app.api.middleware` takes 64 KiB
_MAX_URL_BYTES = 16 * 1024
_MAX_HEADERS = 150
_LINGER_SECONDS = 5.0  # for a body that is not wanted any more, so that its sender comes to read why
_STALLED_SECONDS = 60.0  # an answer's reader takes some 64 KiB in that time, or is gone
_MAX_PIPELINED = 16


def config(
    application: ASGIApp, *, most: int, lifespan: Literal["auto", "off"], grace_seconds: int | None = None
) -> uvicorn.Config:
    """How the API is served, with so many connections at a time."""
    return uvicorn.Config(
        application,
        http=type("Connection", (_Connection,), {"most": most}),
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whose word is taken is a setting of ours: see `app.api.origins`
        timeout_graceful_shutdown=grace_seconds,
    )


class _Connection(HttpToolsProtocol):
    most: int  # connections at a time

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._patient = _Patient(transport, self)
        super().connection_made(self._patient)  # pyright: ignore[reportArgumentType]  all that is used of a transport
        self._is_refused = False
        self.is_in_body = False  # of a request, whether or not it is answered already
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most:
            self.connections.discard(self)
            self._refuse(503, "Too many connections are open at the moment. Please try again.")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self.resume_writing()
        self._patient.forget()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        was_in_body = self.is_in_body
        super().data_received(data)
        if was_in_body or self.is_in_body or self._is_refused:
            return
        if self._head_bytes or self.cycle is None or self.cycle.response_complete:
            # Amid a request's headers, or between two requests, where line feeds count as the beginning of the next.
            self._head_bytes += len(data)
            self._await_head()
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(431, "The request's headers are too large.")

    # What the parser tells. It goes on with its piece of data after a refusal.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 1

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > _MAX_URL_BYTES:
            self._refuse(414, "The request's URL is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > _MAX_HEADERS:
            self._refuse(431, f"The request has more than {_MAX_HEADERS} headers.")

    def on_headers_complete(self) -> None:
        self._end_head()
        if self._is_refused:
            return
        self.is_in_body = True
        super().on_headers_complete()
        if len(self.pipeline) > _MAX_PIPELINED:
            self._refuse(400, "Too many requests were sent without waiting for their answers.")

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_refused:
            return
        super().on_message_complete()
        self.is_in_body = False
        self._patient.body_is_over()
        if self.cycle.response_complete:
            self._await_head()

    # What uvicorn and the transport tell.

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.is_in_body:
            self._patient.close_soon(_LINGER_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(_STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "The request is not valid HTTP." if "Invalid HTTP" in msg else msg)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._head_is_late)

    def _end_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self._head_bytes:
            self._refuse(408, "The request's headers did not arrive in time.")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer, if no other answer is under way, and hear no more."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._end_head()
        self._unset_keepalive_if_required()
        own_id = new_request_id()
        _log.info("%s was refused before it was a request: %d %s", own_id, status, message)
        if self.cycle is None or self.cycle.response_complete:
            error = Unavailable(message) if status == Unavailable.status else InvalidRequest(message)
            error.headers |= {"connection": "close", "x-request-id": own_id}
            response = errors.respond(error)
            head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
            self.transport.write(STATUS_LINE[status] + head + b"\r\n" + bytes(response.body))
            self._patient.close_soon(_LINGER_SECONDS)
        else:
            self.transport.abort()


class _Patient:
    """A transport that is closed only when the request's body has come to its end, or after a while.

    A connection that is closed while its client still sends is reset, and the answer may be lost with it. And one that
    is closed waits for its last bytes to be taken, which may be never.
    """

    def __init__(self, transport: asyncio.Transport, connection: _Connection) -> None:
        self._transport = transport
        self._connection = connection
        self._closing_timer: asyncio.TimerHandle | None = None
        self._is_to_close = False
        self.write, self.is_closing = transport.write, transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._is_to_close = True
        if self._connection.is_in_body:
            self.close_soon(_LINGER_SECONDS)
        else:
            self._close_now()

    def close_soon(self, seconds: float) -> None:
        if self._closing_timer is None:
            self._closing_timer = self._connection.loop.call_later(seconds, self._close_now)

    def body_is_over(self) -> None:
        if self._is_to_close:
            self._close_now()
        else:
            self.forget()

    def forget(self) -> None:
        if self._closing_timer is not None:
            self._closing_timer.cancel()
            self._closing_timer = None

    def _close_now(self) -> None:
        self.forget()
        if not self._transport.is_closing():
            self._transport.close()
            self._closing_timer = self._connection.loop.call_later(_STALLED_SECONDS, self._transport.abort)
