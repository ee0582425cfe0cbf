"""The HTTP application. Nothing happens at import; whoever calls `create_app` opens and closes the resources."""

from typing import Any

from fastapi import FastAPI

from app.api import admin, checkpoints, errors, files, jobs, logs, models, system, webhooks
from app.api.middleware import RequestContext
from app.resources import Resources

_ABOUT = "A self-hosted fine-tuning service that speaks OpenAI's API."


def create_app(resources: Resources) -> FastAPI:
    app = _routes()
    app.state.resources = resources
    return app


def describe() -> dict[str, Any]:
    """The OpenAPI document."""
    return _routes().openapi()


def _routes() -> FastAPI:
    app = FastAPI(
        title="Hone",
        version="1.0",
        description=_ABOUT,
        # The pages that FastAPI offers load their scripts from a public host; a server at home may not reach it.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.add_middleware(RequestContext)
    errors.install(app)
    for resource in (files, jobs, checkpoints, logs, models, webhooks, admin, system):
        app.include_router(resource.router)
    return app
