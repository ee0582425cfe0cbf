"""The HTTP application. Nothing happens at import; whoever calls `create_app` opens and closes the resources."""

import asyncio
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api import (
    access,
    admin,
    admin_keys,
    audit_logs,
    browsers,
    checkpoints,
    docs_page,
    errors,
    events,
    files,
    graders,
    jobs,
    limit_settings,
    logs,
    model_aliases,
    models,
    organizations,
    permissions,
    project_keys,
    project_users,
    projects,
    service_accounts,
    system,
    uploads,
    usage,
    users,
    webhooks,
)
from app.api.key_uses import KeyUses
from app.api.middleware import RequestContext
from app.api.streams import Streams
from app.api.trail import Trail
from app.resources import Resources
from app.schemas import examples
from app.schemas.common import Wire

# In the order in which their routes are tried.
_RESOURCES = (
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
    projects,
    project_users,
    service_accounts,
    project_keys,
    users,
    admin_keys,
    admin,
    limit_settings,
    organizations,
    usage,
    audit_logs,
    model_aliases,
    system,
)
_ABOUT = "A self-hosted fine-tuning service that speaks OpenAI's API."


def create_app(resources: Resources) -> FastAPI:
    app = _routes()
    if resources.settings.docs_page:
        docs_page.install(app)
    browsers.install(app, resources.settings)
    app.state.resources = resources
    app.state.uses = KeyUses(resources)
    app.state.trail = Trail(resources)
    app.state.stopping = asyncio.Event()  # set by whoever stops the server: answers without an end then end
    app.state.streams = Streams(resources.settings.streams_per_key)
    return app


def routes() -> list[APIRoute]:
    """All of the API's, those that the document leaves out included."""
    return [route for resource in _RESOURCES for route in resource.router.routes if isinstance(route, APIRoute)]


def describe() -> dict[str, Any]:
    """The OpenAPI document."""
    return _routes().openapi()


def _routes() -> FastAPI:
    app = FastAPI(
        title="Hone",
        version="1.0",
        description=_ABOUT,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.add_middleware(RequestContext)
    errors.install(app)
    for resource in _RESOURCES:
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
    for route in routes():
        need = access.need_of(route)
        if need is not None and route.include_in_schema:
            for method in route.methods or ():
                document["paths"][route.path_format][method.lower()]["x-hone-needs"] = need.told(method)
    return document
