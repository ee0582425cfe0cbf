"""The audit log on the wire: OpenAI's object, with what Hone knows besides."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from app.schemas import admin_examples
from app.schemas.common import Wire


class ActorApiKey(Wire):
    id: str
    type: Literal["user"] = "user"


class Actor(Wire):
    type: Literal["api_key"] = "api_key"
    api_key: ActorApiKey


class AuditProject(Wire):
    id: str


class AuditDetails(Wire):
    actor: Literal["api_key", "anonymous", "cli", "worker", "system"] = Field(
        description="`cli` is somebody at the server's command line; `anonymous` had no good key."
    )
    outcome: Literal["succeeded", "failed"]
    target_id: str | None
    organization_id: str | None
    source_address: str | None = Field(description="Of the client, or of what stands before it: see the settings.")
    user_agent: str | None
    request_id: str | None = Field(description="The answer's `X-Request-Id`.")


class AuditLogRead(Wire):
    """`type` says what was done; the field of that name holds ids, of what it was done to and of what that meant."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: str
    effective_at: int
    actor: Actor | None = Field(description="Null where no API key acted: see `hone.actor`.")
    project: AuditProject | None
    hone: AuditDetails

    __pydantic_extra__: dict[str, Any]  # pyright: ignore[reportIncompatibleVariableOverride]


class AuditLogList(Wire):
    model_config = admin_examples.AUDIT_LOG

    object: Literal["list"] = "list"
    data: list[AuditLogRead]
    first_id: str | None
    last_id: str | None
    has_more: bool
