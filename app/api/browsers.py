"""What browsers are told: that answers are for nobody else's pages, and which pages may call this server at all.

Nothing here keeps out a client that is no browser. No cookie is used anywhere, so a page that has no key gets nothing.
"""

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.settings import Settings

STATIC = "/docs/static"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",  # for browsers that do not know `frame-ancestors`
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
_SHOWN_TO_PAGES = (
    *("content-disposition", "content-range", "etag", "repr-digest", "idempotent-replayed"),
    *("openai-organization", "openai-processing-ms", "openai-version", "x-request-id", "retry-after", "x-should-retry"),
    *("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
)


def install(app: FastAPI, settings: Settings) -> None:
    """Around everything that has been added before, so that no answer goes without."""
    if settings.cors_allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_allowed_origins,
            allow_methods=_METHODS,
            allow_headers=["*"],  # OpenAI's clients send many, and the origin has been checked
            expose_headers=_SHOWN_TO_PAGES,
        )
    app.add_middleware(_SecurityHeaders)


class _SecurityHeaders:
    """Plain ASGI, so that streamed bodies pass through untouched. An answer's own headers are kept."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if not scope["path"].startswith(f"{STATIC}/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)
