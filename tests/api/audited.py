"""What the audit log is asked about: who acts, and a successful call of each operation with the entry it must leave."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from app.resources import Resources
from tests.conftest import Tenant


@dataclass(frozen=True)
class Actors:
    """`admin` is a client of the tenant's organization, `operator` one of the default project; `resources` are those
    of the server."""

    tenant: Tenant
    http: httpx.AsyncClient
    admin: httpx.AsyncClient
    operator: httpx.AsyncClient

    @property
    def resources(self) -> Resources:
        return self.tenant.resources


Call = Callable[[Actors], Awaitable[httpx.Response]]
CALLS: dict[str, tuple[str, Call]] = {}


def writes(operation: str, action: str) -> Callable[[Call], Call]:
    """A successful call of the operation, and the entry that it must leave."""

    def add(call: Call) -> Call:
        CALLS[operation] = (action, call)
        return call

    return add
