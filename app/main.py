"""The HTTP application. Nothing happens at import; whoever calls `create_app` opens and closes the resources."""

import asyncio
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.api import (
    admin,
    audit_logs,
    checkpoints,
    errors,
    events,
    files,
    graders,
    jobs,
    logs,
    model_aliases,
    models,
    permissions,
    system,
    uploads,
    usage,
    webhooks,
)
from app.api.limits import Limiter
from app.api.middleware import RequestContext
from app.api.trail import Trail
from app.resources import Resources
from app.schemas import examples
from app.schemas.common import Wire

_ABOUT = "A self-hosted fine-tuning service that speaks OpenAI's API."


def create_app(resources: Resources) -> FastAPI:
    app = _routes()
    app.state.resources = resources
    app.state.trail = Trail(resources)
    app.state.stopping = asyncio.Event()  # set by whoever stops the server: answers without an end then end
    app.state.limiter = Limiter(most) if (most := resources.settings.requests_per_minute) else None
    return app


def describe() -> dict[str, Any]:
    """The OpenAPI document."""
    return _routes().openapi()


def _routes() -> FastAPI:
    # FastAPI's own page would load its scripts from a public host, which a server at home may not reach.
    app = FastAPIOffline(
        title="Hone",
        version="1.0",
        description=_ABOUT,
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/static",
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.add_middleware(RequestContext)
    errors.install(app)
    for resource in (
        files,
        uploads,
        jobs,
        events,
        checkpoints,
        permissions,
        logs,
        graders,
        models,
        webhooks,
        admin,
        model_aliases,
        usage,
        audit_logs,
        system,
    ):
        app.include_router(resource.router)
    app.openapi = partial(_described, app)
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with what is null in examples, which it leaves out there as well."""
    document = FastAPI.openapi(app)
    shown = examples.of_kinds(Wire)
    for name, schema in document["components"]["schemas"].items():
        if name in shown:
            schema["examples"] = shown[name]
    return document
