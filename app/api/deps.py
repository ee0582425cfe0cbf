"""What routes ask for: resources, the caller, a session, a place in a list."""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError
from sqlalchemy.ext.asyncio import AsyncSession

from app.api.limits import Limiter
from app.auth import Principal
from app.errors import Forbidden, InvalidRequest, Unauthenticated
from app.resources import Resources
from app.services import audit, keys

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
    except Unauthenticated as refusal:
        request.app.state.trail.login_failed(refusal.code or "invalid_api_key")
        raise
    audit.caller.set(principal)
    request.state.organization_id = principal.organization_id
    limiter: Limiter | None = request.app.state.limiter
    if limiter is not None:
        request.state.allowance = limiter.take(principal.key_id)
    return principal


async def require_operator(principal: Annotated[Principal, Depends(authenticate)], resources: Opened) -> None:
    """Whoever holds a key of the default project runs the installation; other projects are its tenants."""
    async with resources.read() as session:
        if not await keys.is_operator(session, principal):
            raise Forbidden("This needs a key of the server's operator, which is one of the default project.")


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


def _plain_integer(value: object) -> object:
    """Python would also take "1_0", " 5" and digits of other scripts."""
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]{1,9}", value):
        raise PydanticCustomError("int_type", "expected an integer")
    return value


PLAIN_INTEGER = BeforeValidator(_plain_integer)
After = Annotated[str | None, Query(description="The id of the last item of the page before.")]

AUTHENTICATED = [Depends(authenticate), Depends(no_repeated_parameters)]
