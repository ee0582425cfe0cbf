"""The `hone` command: the composition root, where settings become resources and resources become a server.

What only some commands need is imported by them, so that the others answer at once.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from app import audit_cli, limits_cli, sealing, secrets_cli, tenancy_cli
from app.console import DataDirectory, console, settings_of
from app.db import migrations
from app.errors import ApiError, CannotDo, NotFound
from app.observability import redact
from app.origin import Origin, origin
from app.resources import open_resources
from app.schemas.admin import WorkerList
from app.services import base_models, model_aliases, workers
from app.settings import Settings
from app.storage.base import StorageUnavailable
from worker.data import base_model_source
from worker.data.adapter_source import BadAdapter
from worker.data.base_model_source import BadBaseModel

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Hone: a self-hosted fine-tuning service.")
models = typer.Typer(no_args_is_help=True, help="The base models that jobs may name.")
workers_group = typer.Typer(no_args_is_help=True, help="The worker processes of this installation.")
cli.add_typer(models, name="models")
cli.add_typer(workers_group, name="workers")
cli.add_typer(tenancy_cli.keys_group, name="keys")
cli.add_typer(tenancy_cli.organizations_group, name="organizations")
cli.add_typer(tenancy_cli.projects_group, name="projects")
cli.add_typer(tenancy_cli.members_group, name="members")
cli.add_typer(secrets_cli.secrets_group, name="secrets")
cli.add_typer(limits_cli.limits_group, name="limits")
cli.add_typer(audit_cli.audit_group, name="audit")

_EXPECTED = (
    migrations.OldSchema,
    migrations.NoDatabase,
    BadBaseModel,
    BadAdapter,
    ApiError,
    StorageUnavailable,
    CannotDo,
    sealing.BadKey,
)


def main() -> None:
    origin.set(Origin("cli"))
    try:
        cli()
    except _EXPECTED as error:
        console.print(f"hone: {redact(str(error))}", style="red", markup=False)  # for "hone[worker]" is no markup
        sys.exit(1)


@cli.command()
def serve(
    data: DataDirectory = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default=False)] = None,
    api_only: Annotated[bool, typer.Option("--api-only", help="Serve the API; workers run elsewhere.")] = False,
) -> None:
    """Serve the API, and train, in one process."""
    from app import server

    settings = settings_of(data, host=host, port=port)
    if api_only:
        migrations.require_current(settings.resolved_database_url)
    else:
        migrations.prepare(settings.resolved_database_url)
    sys.exit(asyncio.run(server.serve(settings, console, with_worker=not api_only)))


@cli.command()
def worker(
    data: DataDirectory = None,
    pool: Annotated[str | None, typer.Option(help="Train the jobs of this pool.", show_default=False)] = None,
    slots: Annotated[int | None, typer.Option(help="Jobs to train at a time.", show_default=False)] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Only check files and sweep; needs no PyTorch.")] = False,
) -> None:
    """Check files and train jobs that an API server elsewhere takes in, on the same database and storage."""
    from app import server

    settings = settings_of(data, pool=pool, slots=slots, cpu_only=cpu or None)
    migrations.require_current(settings.resolved_database_url)
    sys.exit(asyncio.run(server.work(settings, console)))


@cli.command()
def migrate(data: DataDirectory = None) -> None:
    """Bring the database to the schema of this version."""
    settings = settings_of(data)
    migrations.upgrade(settings.resolved_database_url)
    console.print("The database is up to date.")


@cli.command()
def doctor(data: DataDirectory = None) -> None:
    """Say what this machine has and lacks."""
    from app import doctor as health

    findings = asyncio.run(health.examine(settings_of(data)))
    for finding in findings:
        mark = "[green]ok[/]  " if finding.advice is None else "[yellow]look[/]"
        console.print(f"{mark}  {finding.subject}: {redact(finding.state)}")
        if finding.advice is not None:
            console.print(f"      {redact(finding.advice)}")
    sys.exit(0 if all(finding.advice is None for finding in findings) else 1)


@models.command("add")
def add_model(
    model_id: Annotated[str, typer.Argument(help="The name that jobs will use.")],
    source: Annotated[str, typer.Option(help="A directory on this machine, or a hub repository (owner/name).")],
    data: DataDirectory = None,
) -> None:
    """Register a base model, pinned to what it is now."""
    from app import base_import

    settings = settings_of(data)
    migrations.prepare(settings.resolved_database_url)

    async def register() -> base_model_source.BaseModelFacts:
        async with open_resources(settings) as resources:
            return await base_import.run(resources, model_id=model_id, source=source, tell=console.print)

    facts = asyncio.run(register())
    console.print(
        f"{model_id} is registered: {facts.num_parameters / 1e6:.1f} million parameters, {facts.revision[:12]}."
    )


@models.command("import-adapter")
def import_adapter(
    name: Annotated[str, typer.Argument(help="A part of the model's name: letters, digits, hyphens, full stops.")],
    base: Annotated[str, typer.Option(help="The registered base model that the adapter was trained on.")],
    source: Annotated[Path, typer.Option(help="A PEFT directory: adapter_config.json, adapter_model.safetensors.")],
    data: DataDirectory = None,
) -> None:
    """Make a model of a LoRA adapter that was trained elsewhere: to download, or to continue from."""
    from app import adapter_import

    settings = settings_of(data)
    migrations.prepare(settings.resolved_database_url)

    async def run() -> str:
        async with open_resources(settings) as resources:
            return (await adapter_import.run(resources, name=name, base_id=base, source=source)).id

    console.print(f"{asyncio.run(run())} is imported.")


@models.command("merge")
def merge_model(
    model: Annotated[str, typer.Argument(help="A fine-tuned model, a checkpoint of one, or a PEFT directory.")],
    output: Annotated[Path, typer.Option(help="Directory to write to: a new or an empty one.")],
    base: Annotated[
        str | None, typer.Option(help="The base model that a PEFT directory was trained on.", show_default=False)
    ] = None,
    data: DataDirectory = None,
) -> None:
    """Merge an adapter into its base: a plain model in 16 bits, for servers that take no adapter."""
    from app import adapter_merge, server

    settings = settings_of(data)
    migrations.require_current(settings.resolved_database_url)
    server.require_training_libraries("this machine cannot merge")

    async def run() -> str:
        async with open_resources(settings) as resources:
            return await adapter_merge.run(resources, name=model, base_id=base, output=output.expanduser().absolute())

    console.print(f"{model} is merged into {asyncio.run(run())}: {output}")


@models.command("list")
def list_models(data: DataDirectory = None) -> None:
    """Show the registered base models."""
    settings = settings_of(data)
    migrations.require_current(settings.resolved_database_url)

    async def search():
        async with open_resources(settings) as resources, resources.read() as session:
            return await base_models.search(session), await model_aliases.search(session)

    bases, aliases = asyncio.run(search())
    table = Table("id", "parameters", "context", "revision", "source", box=None)
    for base in bases:
        size = f"{base.num_parameters / 1e6:.1f} M"
        table.add_row(base.id, size, str(base.context_tokens), base.revision[:12], base.source)
    console.print(table)
    for alias in aliases:
        console.print(f"{alias.id} stands for {alias.base_model_id}")


@models.command("alias")
def alias_model(
    name: Annotated[str, typer.Argument(help="The name that clients use, such as gpt-4o-mini-2024-07-18.")],
    base: Annotated[str, typer.Argument(help="The registered base model that it shall stand for.")],
    data: DataDirectory = None,
) -> None:
    """Let a base model be named otherwise too; a name that stands for another is moved to this one."""
    settings = settings_of(data)
    migrations.require_current(settings.resolved_database_url)

    async def put() -> None:
        async with open_resources(settings) as resources, resources.write() as session:
            await model_aliases.put(session, name=name, base_id=base)

    asyncio.run(put())
    console.print(f"{name} stands for {base}.")


@models.command("unalias")
def unalias_model(
    name: Annotated[str, typer.Argument(help="The alias, as `hone models list` shows it.")], data: DataDirectory = None
) -> None:
    """Remove an alias. Jobs that were created by it are not affected."""
    settings = settings_of(data)
    migrations.require_current(settings.resolved_database_url)

    async def remove() -> None:
        async with open_resources(settings) as resources, resources.write() as session:
            await model_aliases.remove(session, name=name)

    asyncio.run(remove())
    console.print(f"{name} stands for nothing any more.")


@models.command("build-tiny")
def build_tiny(
    data: DataDirectory = None,
) -> None:
    """Build and register the tiny base model hone-tiny: a real Llama of a few million parameters, for trying things."""
    from app import server

    settings = settings_of(data)
    migrations.prepare(settings.resolved_database_url)

    async def register() -> None:
        async with open_resources(settings) as resources:
            await server.ensure_tiny_model(resources, console)

    asyncio.run(register())


@workers_group.command("list")
def list_workers(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, as GET /v1/admin/workers.")] = False,
    data: DataDirectory = None,
) -> None:
    """Show the worker processes: what they have loaded, what they work on, and whether they live."""
    from app.api import admin

    found = _workers(settings_of(data))
    if as_json:
        console.print_json(WorkerList(data=[admin.read_worker(worker) for worker in found]).model_dump_json())
        return
    names = ("id", "host", "pid", "pool", "state", "heartbeat", "slot", "device", "base", "job")
    table = Table(*(Column(name, overflow="fold") for name in names), box=None)
    found_wanting: list[str] = []
    for worker in (admin.read_worker(seen) for seen in found):
        silent = f"{max(0, int(time.time()) - worker.heartbeat_at)} s ago"
        who = [worker.id, worker.hostname, str(worker.pid), worker.pool, worker.state, silent]
        for slot in worker.slots or [None]:
            what = [str(slot.number), slot.device, slot.base_model or "", slot.job_id or slot.state] if slot else []
            table.add_row(*who, *what)
            who = [""] * len(who)
        found_wanting += [f"{worker.id} cannot get {base}: {why}" for base, why in worker.unavailable_bases.items()]
    console.print(table)
    for line in found_wanting:
        console.print(line)


@workers_group.command("drain")
def drain_workers(
    target: Annotated[str, typer.Argument(help="A worker's id, or the name of a host for all workers on it.")],
    data: DataDirectory = None,
) -> None:
    """Have workers write checkpoints, hand their jobs back to the queue, and end."""
    settings = settings_of(data)
    asked = [
        worker.row.id
        for worker in _workers(settings)
        if target == worker.row.id or (target == worker.row.hostname and not worker.is_dead)
    ]
    if not asked:
        raise NotFound(f"There is no worker and no host with a worker named '{target}'; see `hone workers list`.")

    async def drain() -> None:
        async with open_resources(settings) as resources, resources.write() as session:
            for worker_id in asked:
                await workers.drain(session, worker_id=worker_id, silent_seconds=settings.lease_seconds)

    asyncio.run(drain())
    console.print(f"Asked to drain: {', '.join(asked)}")


def _workers(settings: Settings) -> list[workers.Seen]:
    migrations.require_current(settings.resolved_database_url)

    async def search() -> list[workers.Seen]:
        async with open_resources(settings) as resources, resources.read() as session:
            return await workers.search(session, silent_seconds=settings.lease_seconds)

    return asyncio.run(search())


if __name__ == "__main__":
    main()
