"""`hone organizations`, `projects`, `members` and `keys`: who may use this installation, and for what.

The operator's, who needs no key for them: whoever may write to the database runs the server.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Column, Table
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Role, Scope
from app.console import DataDirectory, console, settings_of
from app.db import migrations
from app.db.models import ApiKey, Organization, Project
from app.db.queries import server_rows
from app.db.tenancy_models import AdminApiKey, User
from app.errors import InvalidRequest, NotFound
from app.resources import open_resources
from app.services import admin_keys, keys, organizations, project_keys, projects, users

organizations_group = typer.Typer(no_args_is_help=True, help="Organizations: each has projects, people, admin keys.")
projects_group = typer.Typer(no_args_is_help=True, help="Projects: whose files, jobs and models are.")
members_group = typer.Typer(no_args_is_help=True, help="The people of a project; a role bounds all of one's keys.")
keys_group = typer.Typer(no_args_is_help=True, help="Keys for the API.")

Result = TypeVar("Result")
Row = TypeVar("Row", Organization, Project, ApiKey, AdminApiKey, User)
Name = Annotated[str, typer.Argument(help="A name.")]
NameOrId = Annotated[str, typer.Argument(help="A name or an id.")]
InProject = Annotated[str | None, typer.Option("--project", help="A name or an id.", show_default="the default one")]
InOrganization = Annotated[
    str | None, typer.Option("--organization", help="A name or an id.", show_default="the default one")
]
_DAY_SECONDS = 86_400


@organizations_group.command("create")
def create_organization(name: Name, data: DataDirectory = None) -> None:
    """Make an organization. Its name becomes a part of its models' names."""
    made = _run(data, lambda session: organizations.create(session, name=name))
    console.print(f"{made.id}")


@organizations_group.command("list")
def list_organizations(data: DataDirectory = None) -> None:
    """Show the organizations."""
    table = _table("id", "name", "created", "state")
    for one in _run(data, lambda session: _all(session, Organization)):
        state = "active" if one.disabled_at is None else "disabled"
        table.add_row(one.id, one.name, _day(one.created_at), state)
    console.print(table)


@organizations_group.command("disable")
def disable_organization(organization: NameOrId, data: DataDirectory = None) -> None:
    """Refuse all keys of an organization, at once. Runs go on."""
    _set_disabled(data, organization, is_disabled=True)
    console.print(f"{organization} is disabled.")


@organizations_group.command("enable")
def enable_organization(organization: NameOrId, data: DataDirectory = None) -> None:
    """Let a disabled organization in again."""
    _set_disabled(data, organization, is_disabled=False)
    console.print(f"{organization} is enabled.")


@projects_group.command("create")
def create_project(name: Name, organization: InOrganization = None, data: DataDirectory = None) -> None:
    """Make a project of an organization."""

    async def create(session: AsyncSession) -> Project:
        organization_id = (await _organization(session, organization)).id
        return await projects.create(session, organization_id=organization_id, name=name)

    console.print(_run(data, create).id)


@projects_group.command("list")
def list_projects(data: DataDirectory = None) -> None:
    """Show the projects of all organizations."""

    async def search(session: AsyncSession) -> tuple[list[Project], dict[str, str]]:
        names = {one.id: one.name for one in await _all(session, Organization)}
        return await _all(session, Project), names

    found, names = _run(data, search)
    table = _table("id", "name", "organization", "created", "state")
    for one in found:
        state = "archived" if one.archived_at else "disabled" if one.disabled_at else "active"
        table.add_row(one.id, one.name, names[one.organization_id], _day(one.created_at), state)
    console.print(table)


@projects_group.command("archive")
def archive_project(project: NameOrId, data: DataDirectory = None) -> None:
    """Refuse all keys of a project, at once and for good. Runs go on, and what it holds stays."""

    async def archive(session: AsyncSession) -> None:
        await projects.archive(session, await projects.named(session, project))

    _run(data, archive)
    console.print(f"{project} is archived.")


@members_group.command("add")
def add_member(
    email: Annotated[str, typer.Argument(help="Who it is; nobody is written to.")],
    project: InProject = None,
    role: Annotated[Role, typer.Option(help="What the person's keys may do at most.")] = Role.MEMBER,
    name: Annotated[str | None, typer.Option(help="Of somebody new.", show_default="from the address")] = None,
    data: DataDirectory = None,
) -> None:
    """Make somebody a member of a project, or give a member another role."""

    async def add(session: AsyncSession) -> users.Member:
        chosen, organization = await _project(session, project)
        administrator = organizations.administrator(organization)
        return await users.add_member(session, administrator, chosen, role=role, email=email, name=name)

    console.print(_run(data, add).user.id)


@members_group.command("list")
def list_members(project: InProject = None, data: DataDirectory = None) -> None:
    """Show the members of a project."""

    async def search(session: AsyncSession) -> list[users.Member]:
        chosen, organization = await _project(session, project)
        administrator = organizations.administrator(organization)
        page = await users.search_members(session, administrator, chosen, after=None, limit=100_000)
        return list(page.rows)

    table = _table("id", "email", "name", "role", "added")
    for one in _run(data, search):
        table.add_row(one.user.id, one.user.email, one.user.name, one.row.role, _day(one.row.added_at))
    console.print(table)


@members_group.command("remove")
def remove_member(
    member: Annotated[str, typer.Argument(help="An email address, or a user's id.")],
    project: InProject = None,
    data: DataDirectory = None,
) -> None:
    """Remove a member from a project, and revoke the keys that the person has in it."""

    async def remove(session: AsyncSession) -> None:
        chosen, organization = await _project(session, project)
        await users.remove_member(session, chosen, await _member(session, chosen, organization, member))

    _run(data, remove)
    console.print(f"{member} is removed.")


@keys_group.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "cli",
    project: InProject = None,
    role: Annotated[Role, typer.Option(help="What the key may do at most.")] = Role.OWNER,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Restrict the key; may be given several times.", show_default="all")
    ] = None,
    member: Annotated[
        str | None, typer.Option(help="Whose key it is: an email address or a user's id.", show_default="the project's")
    ] = None,
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="When it expires.", show_default="never")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="A key that administers an organization instead.")] = False,
    organization: InOrganization = None,
    data: DataDirectory = None,
) -> None:
    """Make an API key, by default one for all of the default project, and print it once."""
    lifetime = None if expires_in_days is None else expires_in_days * _DAY_SECONDS
    if admin and (project or scope or member):
        raise InvalidRequest("An admin key is of an organization: it has neither project nor scopes nor member.")
    if organization and not admin:
        raise InvalidRequest("--organization is for admin keys; other keys are of a project.")

    async def make(session: AsyncSession) -> str:
        if admin:
            administrator = organizations.administrator(await _organization(session, organization))
            return (await admin_keys.issue(session, administrator, name=name, expires_in_seconds=lifetime))[1]
        chosen, its = await _project(session, project)
        owner = None if member is None else (await _member(session, chosen, its, member)).row
        _, key = await project_keys.issue(
            session,
            organizations.administrator(its),
            chosen,
            name=name,
            role=role,
            scopes=sorted(scope) if scope else None,
            owner=owner,
            expires_in_seconds=lifetime,
        )
        return key

    console.print(_run(data, make))


@keys_group.command("list")
def list_keys(project: InProject = None, data: DataDirectory = None) -> None:
    """Show the keys that are not revoked, of all projects or of one; never the keys themselves."""

    async def search(session: AsyncSession) -> tuple[list[ApiKey], list[AdminApiKey], dict[str, str]]:
        names = {one.id: one.name for one in await _all(session, Project)}
        names |= {one.id: one.name for one in await _all(session, Organization)}
        names |= {one.id: one.email for one in await _all(session, User)}
        if project is None:
            return await _all(session, ApiKey), await _all(session, AdminApiKey), names
        chosen = await projects.named(session, project)
        return [key for key in await _all(session, ApiKey) if key.project_id == chosen.id], [], names

    found, admins, names = _run(data, search)
    table = _table("id", "key", "name", "of", "whose", "may", "created", "expires", "last used")
    for key in found:
        if key.revoked_at is None:
            may = key.role if key.scopes is None else f"{key.role}: {', '.join(key.scopes)}"
            whose = names.get(key.user_id or "", key.service_account_id or "")
            table.add_row(key.id, key.hint, key.name, names[key.project_id], whose, may, *_times(key))
    for key in admins:
        if key.revoked_at is None:
            table.add_row(key.id, key.hint, key.name, names[key.organization_id], "", "administer", *_times(key))
    console.print(table)


@keys_group.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `hone keys list` shows it.")],
    data: DataDirectory = None,
) -> None:
    """Refuse a key from now on."""

    async def revoke(session: AsyncSession) -> None:
        of_organization = await session.scalar(server_rows(AdminApiKey).where(AdminApiKey.id == key_id))
        if of_organization is not None:
            admin_keys.revoke(session, of_organization)
        else:
            project_keys.revoke(session, await project_keys.get_any(session, key_id=key_id))

    _run(data, revoke)
    console.print(f"{key_id} is revoked.")


def _run(data: Path | None, work: Callable[[AsyncSession], Awaitable[Result]]) -> Result:
    """In one transaction."""
    settings = settings_of(data)
    migrations.require_current(settings.resolved_database_url)

    async def run() -> Result:
        async with open_resources(settings) as resources, resources.write() as session:
            return await work(session)

    return asyncio.run(run())


def _set_disabled(data: Path | None, name: str, *, is_disabled: bool) -> None:
    async def change(session: AsyncSession) -> None:
        organization = await organizations.named(session, name)
        await organizations.set_disabled(session, organization, is_disabled=is_disabled)

    _run(data, change)


async def _organization(session: AsyncSession, name: str | None) -> Organization:
    if name is not None:
        return await organizations.named(session, name)
    default = await keys.default_project(session)
    return await organizations.get(session, organization_id=default.organization_id)


async def _project(session: AsyncSession, name: str | None) -> tuple[Project, Organization]:
    project = await keys.default_project(session) if name is None else await projects.named(session, name)
    return project, await organizations.get(session, organization_id=project.organization_id)


async def _member(session: AsyncSession, project: Project, organization: Organization, who: str) -> users.Member:
    administrator = organizations.administrator(organization)
    if "@" not in who:
        return await users.member(session, administrator, project, user_id=who)
    page = await users.search(session, administrator, emails=[who], after=None, limit=1)
    if not page.rows:
        raise NotFound(f"Nobody in the organization {organization.name} has the address {who}.")
    return await users.member(session, administrator, project, user_id=page.rows[0].user.id)


async def _all(session: AsyncSession, model: type[Row]) -> list[Row]:
    """Oldest first."""
    return list(await session.scalars(server_rows(model).order_by(model.created_at, model.id)))


def _table(*names: str) -> Table:
    return Table(*(Column(name, overflow="fold") for name in names), box=None)


def _times(key: ApiKey | AdminApiKey) -> tuple[str, str, str]:
    return (
        _day(key.created_at),
        _day(key.expires_at) if key.expires_at else "never",
        f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never",
    )


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
