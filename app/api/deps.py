"""What routes ask for: resources, the caller, a session, a place in a list."""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError, PydanticUseDefault
from sqlalchemy.ext.asyncio import AsyncSession

from app.api import limits
from app.auth import Principal
from app.errors import InvalidRequest, Unauthenticated
from app.resources import Resources
from app.services import audit, keys, quotas

_NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)
_bearer = HTTPBearer(auto_error=False, description="An API key of this server.")


async def get_resources(request: Request) -> Resources:
    return request.app.state.resources


Opened = Annotated[Resources, Depends(get_resources)]


async def authenticate(
    request: Request, resources: Opened, _documented: Annotated[Any, Security(_bearer)]
) -> Principal:
    """Its session is closed before the route's own opens: a request that held two could starve the pool."""
    values = request.headers.getlist("authorization")
    scheme, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated(_NO_KEY, headers={"WWW-Authenticate": "Bearer"})
    try:
        async with resources.read() as session:
            principal = await keys.authenticate(session, key.strip())
            most = (await quotas.of(session, principal.project_id, resources.settings)).requests_per_minute
        _require_selected(request, principal)
    except Unauthenticated as refusal:
        request.app.state.trail.login_failed(refusal.code or "invalid_api_key")
        raise
    audit.caller.set(principal)
    request.app.state.uses.note(principal)
    request.state.organization_id = principal.organization_id
    if most is not None:
        # An admin key's own, because it has no project.
        request.state.allowance = await limits.take(resources.queue, principal.project_id or principal.key_id, most)
    return principal


def _require_selected(request: Request, principal: Principal) -> None:
    """The headers select among what a key may see, which is one project or one organization. What else they name is
    refused alike, whether there is such a thing or not. An admin key may name any project: its requests do so too."""
    seen = {"OpenAI-Organization": principal.organization_id, "OpenAI-Project": principal.project_id}
    for name, own in seen.items():
        if own and any(value not in ("", own) for value in request.headers.getlist(name)):
            kind = name.removeprefix("OpenAI-").lower()
            raise Unauthenticated(f"{name} header should match {kind} for API key", code=f"mismatched_{kind}")


async def read_session(resources: Opened) -> AsyncIterator[AsyncSession]:
    async with resources.read() as session:
        yield session


async def write_session(resources: Opened) -> AsyncIterator[AsyncSession]:
    """Commits when the route has returned and before its response is sent: that is what `scope="function"` is for."""
    async with resources.write() as session:
        yield session


Caller = Annotated[Principal, Depends(authenticate)]
ReadSession = Annotated[AsyncSession, Depends(read_session, scope="function")]
WriteSession = Annotated[AsyncSession, Depends(write_session, scope="function")]


async def no_repeated_parameters(request: Request) -> None:
    """Which of two values is meant cannot be known. Arrays are sent as `name[]`."""
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name in seen and not name.endswith("[]"):
            raise InvalidRequest(f"The parameter '{name[:64]}' was given twice.", param=name[:64])
        seen.add(name)


def _default_if_empty(value: object) -> object:
    """`?after=` is how the Node client writes null, and what forms send whose field nobody has filled in."""
    if value == "":
        raise PydanticUseDefault
    return value


def _plain_integer(value: object) -> object:
    """Python would also take "1_0", " 5" and digits of other scripts."""
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]{1,9}", value):
        raise PydanticCustomError("int_type", "expected an integer")
    return value


MAY_BE_EMPTY = BeforeValidator(_default_if_empty)
PLAIN_INTEGER = BeforeValidator(lambda value: _plain_integer(_default_if_empty(value)))
After = Annotated[str | None, MAY_BE_EMPTY, Query(description="The id of the last item of the page before.")]

AUTHENTICATED = [Depends(authenticate), Depends(no_repeated_parameters)]
