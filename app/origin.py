"""From where something is done: what the audit log says of it beside who did it."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Origin:
    """`kind` is who acts where no API key does: somebody at the command line, a worker, the server itself."""

    kind: Literal["api", "cli", "worker", "system"]
    source_address: str | None = None
    user_agent: str | None = None


origin: ContextVar[Origin] = ContextVar("origin", default=Origin("system"))  # noqa: B039 - it cannot be changed
