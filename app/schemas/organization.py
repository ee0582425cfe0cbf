"""Organizations on the wire, as at OpenAI: projects, users, service accounts, keys. Hone's own are at the end."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from app.auth import Scope
from app.schemas import admin_examples
from app.schemas.common import Wire
from app.schemas.examples import shown
from worker.contract.text import Text

RoleWord = Literal["owner", "member", "reader"]
Lifetime = Annotated[int, Field(ge=1, le=315_360_000, description="Seconds until the key expires; by default, never.")]
_READS = ("files.read", "jobs.read", "models.read")


def _scope(word: str) -> str:
    """OpenAI writes `api.` before its own."""
    short = word.removeprefix("api.")
    if short != "all.read" and short not in set(Scope):
        raise PydanticCustomError("scope", "expected one of {known}", {"known": ", ".join(Scope)})
    return word


Scopes = Annotated[
    list[Annotated[Text, AfterValidator(_scope)]],
    Field(
        max_length=16,
        description="What the key is restricted to: `files`, `jobs`, `models`, `admin`, each with `.read` or `.write`, "
        "which includes reading; or `all.read`. An empty list is no restriction.",
    ),
]


def chosen(scopes: list[str] | None) -> list[str] | None:
    """As keys keep them."""
    if not scopes:
        return None
    short = {scope.removeprefix("api.") for scope in scopes}
    return sorted(short - {"all.read"} | set(_READS if "all.read" in short else ()))


class Page(Wire):
    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class ProjectCreate(Wire):
    model_config = shown({"name": "support-bots"})
    name: Text
    geography: None = Field(None, description="Not offered: data stays where the server keeps it.")
    residency: None = Field(None, description="Not offered, as `geography`.")
    external_key_id: None = Field(None, description="Not offered.")


class ProjectUpdate(Wire):
    model_config = shown({"name": "support-bots"})
    name: Text | None = None
    geography: None = None
    external_key_id: None = None


class ProjectRead(Wire):
    model_config = admin_examples.PROJECT

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]


class ProjectList(Page):
    model_config = admin_examples.PROJECTS

    data: list[ProjectRead]


class UserProject(Wire):
    id: str
    name: str
    role: RoleWord


class UserProjects(Wire):
    object: Literal["list"] = "list"
    data: list[UserProject]


class UserUpdate(Wire):
    model_config = shown({"role": "owner"})
    role: Literal["owner", "reader"] | None = None


class UserRead(Wire):
    model_config = admin_examples.USER

    id: str
    object: Literal["organization.user"] = "organization.user"
    name: str
    email: str
    role: Literal["owner", "reader"] = Field(description="Told and of no effect: admin keys administer organizations.")
    added_at: int
    api_key_last_used_at: int | None
    projects: UserProjects


class UserList(Page):
    model_config = admin_examples.USERS

    data: list[UserRead]


class UserDeleted(Wire):
    model_config = admin_examples.USER_DELETED

    id: str
    object: Literal["organization.user.deleted"] = "organization.user.deleted"
    deleted: Literal[True] = True


class ProjectUserCreate(Wire):
    model_config = shown({"email": "ada@example.com", "role": "member"})
    role: RoleWord
    user_id: Text | None = Field(None, description="A user of the organization; or name an email address.")
    email: Text | None = Field(None, description="Who is not in the organization yet comes in with this.")
    name: Text | None = Field(None, description="Of somebody new. An extension of Hone's.")


class ProjectUserUpdate(Wire):
    model_config = shown({"role": "reader"})
    role: RoleWord | None = None


class ProjectUserRead(Wire):
    model_config = admin_examples.MEMBER

    id: str
    object: Literal["organization.project.user"] = "organization.project.user"
    name: str
    email: str
    role: RoleWord
    added_at: int


class ProjectUserList(Page):
    model_config = admin_examples.MEMBERS

    data: list[ProjectUserRead]


class ProjectUserDeleted(Wire):
    model_config = admin_examples.MEMBER_DELETED

    id: str
    object: Literal["organization.project.user.deleted"] = "organization.project.user.deleted"
    deleted: Literal[True] = True


class ServiceAccountCreate(Wire):
    model_config = shown({"name": "nightly", "expires_in_seconds": 7_776_000})
    name: Text
    create_service_account_only: bool | None = Field(None, description="Without a key.")
    expires_in_seconds: Lifetime | None = None


class ServiceAccountUpdate(Wire):
    model_config = shown({"role": "owner"})
    name: Text | None = None
    role: RoleWord | None = None


class ServiceAccountKeyCreate(Wire):
    model_config = shown({"name": "second", "scopes": ["api.all.read"]})
    name: Text = "Secret Key"
    scopes: Scopes | None = None
    expires_in_seconds: Lifetime | None = None


class ServiceAccountKey(Wire):
    model_config = admin_examples.ACCOUNT_KEY

    id: str
    object: Literal["organization.project.service_account.api_key"] = "organization.project.service_account.api_key"
    name: str
    created_at: int
    expires_at: int | None
    value: str = Field(description="The key, which is shown this once.")


class ServiceAccountRead(Wire):
    model_config = admin_examples.ACCOUNT

    id: str
    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: RoleWord
    created_at: int


class ServiceAccountCreated(ServiceAccountRead):
    model_config = admin_examples.ACCOUNT_CREATED

    api_key: ServiceAccountKey | None


class ServiceAccountList(Page):
    model_config = admin_examples.ACCOUNTS

    data: list[ServiceAccountRead]


class ServiceAccountDeleted(Wire):
    model_config = admin_examples.ACCOUNT_DELETED

    id: str
    object: Literal["organization.project.service_account.deleted"] = "organization.project.service_account.deleted"
    deleted: Literal[True] = True


class KeyOwnerUser(Wire):
    id: str
    name: str
    email: str
    role: RoleWord
    created_at: int


class KeyOwnerAccount(Wire):
    id: str
    name: str
    role: RoleWord
    created_at: int


class KeyOwner(Wire):
    """Neither of the two owns a key that is the project's own."""

    type: Literal["user", "service_account"] | None
    user: KeyOwnerUser | None
    service_account: KeyOwnerAccount | None


class KeyDetails(Wire):
    role: RoleWord
    scopes: list[str] | None = Field(description="Null is no restriction.")


class ProjectKeyCreate(Wire):
    model_config = shown(
        {"name": "laptop", "user_id": "user-abc123", "scopes": ["files.write", "jobs.write"]},
        {"name": "dashboard", "role": "reader", "expires_in_seconds": 7_776_000},
    )
    name: Text
    role: RoleWord = Field("member", description="A key may do what this, its owner's role and its scopes allow.")
    scopes: Scopes | None = None
    user_id: Text | None = Field(None, description="The member whose key it shall be; else it is the project's.")
    expires_in_seconds: Lifetime | None = None


class ProjectKeyUpdate(Wire):
    model_config = shown({"scopes": ["api.all.read"]})
    scopes: Scopes | None = None
    expires_in_seconds: Lifetime | None = None


class ProjectKeyRead(Wire):
    model_config = admin_examples.PROJECT_KEY

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: KeyOwner
    owner_project_access: Literal["active"] = "active"
    hone: KeyDetails


class ProjectKeyCreated(ProjectKeyRead):
    model_config = admin_examples.PROJECT_KEY_CREATED

    value: str = Field(description="The key, which is shown this once.")


class ProjectKeyList(Page):
    model_config = admin_examples.PROJECT_KEYS

    data: list[ProjectKeyRead]


class ProjectKeyDeleted(Wire):
    model_config = admin_examples.PROJECT_KEY_DELETED

    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


class AdminKeyOwner(Wire):
    """The organization itself."""

    type: Literal["organization"] = "organization"
    object: Literal["organization"] = "organization"
    id: str
    role: Literal["owner"] = "owner"


class AdminKeyCreate(Wire):
    model_config = shown({"name": "terraform", "expires_in_seconds": 7_776_000})
    name: Text
    expires_in_seconds: Lifetime | None = None


class AdminKeyRead(Wire):
    model_config = admin_examples.ADMIN_KEY

    id: str
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: AdminKeyOwner


class AdminKeyCreated(AdminKeyRead):
    model_config = admin_examples.ADMIN_KEY_CREATED

    value: str = Field(description="The key, which is shown this once.")


class AdminKeyList(Page):
    model_config = admin_examples.ADMIN_KEYS

    data: list[AdminKeyRead]


class AdminKeyDeleted(Wire):
    model_config = admin_examples.ADMIN_KEY_DELETED

    id: str
    object: Literal["organization.admin_api_key.deleted"] = "organization.admin_api_key.deleted"
    deleted: Literal[True] = True


class OrganizationCreate(Wire):
    model_config = shown({"name": "acme"})
    name: Text = Field(description="Letters, digits, hyphens: it is a part of its models' names.")


class Disabling(Wire):
    model_config = shown({"disabled": True})
    disabled: bool = Field(description="Whether all keys are refused.")


class OrganizationRead(Wire):
    model_config = admin_examples.ORGANIZATION

    id: str
    object: Literal["organization"] = "organization"
    name: str
    created_at: int
    disabled_at: int | None


class OrganizationList(Page):
    model_config = admin_examples.ORGANIZATIONS

    data: list[OrganizationRead]


class OperatorsProject(ProjectRead):
    model_config = admin_examples.OPERATORS_PROJECT

    organization_id: str
    disabled_at: int | None


class OperatorsProjectList(Page):
    model_config = admin_examples.OPERATORS_PROJECTS

    data: list[OperatorsProject]
