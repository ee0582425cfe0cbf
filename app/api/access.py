"""What each route asks of the caller's key: the one place that decides it, and a router's one line that says it.

`dependencies=needs("files")` lets in keys that may read files for GET and HEAD, and keys that may write files for
everything else. `tests/api/test_tenancy.py` fails for a route under /v1 that says nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Depends, Request

from app.api import errors
from app.api.deps import AUTHENTICATED, Caller, Opened
from app.auth import Principal, Scope
from app.errors import Forbidden
from app.schemas.common import ErrorEnvelope
from app.services import keys

Area = Literal["files", "jobs", "models", "admin", "organization", "server"]
READING = frozenset({"GET", "HEAD"})

_MISSING = (
    "You have insufficient permissions for this operation. Missing scopes: {}. Check that you have the correct role in "
    "your project (Owner, Member, Reader), and if you're using a restricted API key, that it has the necessary scopes."
)
RESPONSES: dict[int | str, dict[str, Any]] = {
    **errors.RESPONSES,
    403: {"model": ErrorEnvelope, "description": "The API key may not do this; the message names the missing scope."},
}


@dataclass(frozen=True)
class Need:
    """What a route needs. The area is one of a key's scopes, or

    - `organization`: an admin key. Where `admin` is needed, an admin key of the project's organization does, too.
    - `server`: a key of the operator, which is one of the default project with the admin scope.
    """

    area: Area
    admin_keys: bool = False  # whether those of the organization do as well

    async def __call__(self, request: Request, principal: Caller, resources: Opened) -> None:
        scope = self.scope(request.method)
        if not self.allows(principal, request.method):
            raise missing([scope])
        if self.area == "server":
            async with resources.read() as session:
                if not await keys.is_operator(session, principal):
                    raise Forbidden("This needs a key of the server's operator, which is one of the default project.")

    def scope(self, method: str) -> str:
        return f"{self.area}.{'read' if method in READING else 'write'}"

    def told(self, method: str) -> list[str]:
        """For the OpenAPI document: each of these lets in."""
        access = self.scope(method).partition(".")[2]
        return [self.scope(method), *([f"organization.{access}"] if self.admin_keys else [])]

    def allows(self, principal: Principal, method: str) -> bool:
        """Whether such a key gets in; of the server's area, once it is one of the default project."""
        if principal.is_admin_key:
            return self.admin_keys or self.area == "organization"
        if self.area == "organization":
            return False
        scope = self.scope(method).replace("server.", "admin.")
        return Scope(scope) in principal.permissions


def needs(area: Area, *, admin_keys: bool = False) -> list[Any]:
    """A router's or a route's dependencies."""
    return [*AUTHENTICATED, Depends(Need(area, admin_keys))]


def missing(scopes: Iterable[str]) -> Forbidden:
    return Forbidden(_MISSING.format(", ".join(sorted(scopes))), code="missing_scope")


def need_of(route: Any) -> Need | None:
    """What a route of the application asks for; None if it says nothing."""
    found = [one.call for one in route.dependant.dependencies if isinstance(one.call, Need)]
    assert len(found) <= 1, f"{route.path} says twice what it needs"
    return found[0] if found else None
