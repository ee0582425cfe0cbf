"""Running: an API server, a worker, or both in one process, until told to stop."""

import asyncio
import importlib.util
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Generator
from contextlib import contextmanager, suppress

import uvicorn
from rich.console import Console

from app import base_import, environment, main, secret_upkeep
from app.api import connections
from app.errors import CannotDo, Unavailable
from app.observability import redact
from app.origin import Origin, origin
from app.resources import Resources, open_resources
from app.sealing import CannotSeal
from app.services import base_models, keys
from app.services.sealed_secrets import Seal
from app.settings import Settings
from app.storage import trial
from app.storage.base import StorageRefused, StorageUnavailable

TINY_MODEL = "hone-tiny"
_GRACE_SECONDS = 5
_OTHER_FILES = 512  # that a server holds open beside its connections: the database, storage, uploads, itself


async def serve(settings: Settings, console: Console, *, with_worker: bool) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit status: 0, or 1 if something failed."""
    origin.set(Origin("system"))
    trains = with_worker and not settings.cpu_only
    if trains:
        require_training_libraries("this machine cannot train", otherwise=", or serve the API alone with --api-only")
    listener = _listen(settings)
    async with open_resources(settings) as resources:
        await _first_steps(resources, console, trains=trains)
        url = f"http://{_shown_host(settings.host)}:{listener.getsockname()[1]}"
        application = main.create_app(resources)
        most = _connections(settings.connections)
        api = _Server(connections.config(application, most=most, lifespan="auto", grace_seconds=_GRACE_SECONDS))
        draining = _draining_at_signals(console)
        async with asyncio.TaskGroup() as tasks:
            answering = tasks.create_task(_stop_others_when_over(api.serve(sockets=[listener]), draining))
            console.print(f"Hone serves {url}/v1 (stop with Ctrl-C)")
            console.print(f"Try it:  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=<your key>")
            if with_worker:
                await _stop_others_at_a_fault(_worker(resources, draining), draining)
            await draining.wait()  # a worker that was asked to drain is done before; the API goes on
            application.state.stopping.set()
            api.should_exit = True
            await answering
        await application.state.uses.flush()
        with suppress(Unavailable):
            await application.state.trail.flush()
    return 0


async def work(settings: Settings, console: Console) -> int:
    """Work until SIGINT, SIGTERM or `hone workers drain`."""
    origin.set(Origin("worker"))
    if not settings.cpu_only:
        require_training_libraries("this machine cannot train")
    async with open_resources(settings) as resources:
        await _try_storage(resources, console)
        await _seal_secrets(resources, console)
        draining = _draining_at_signals(console)
        what = "without a slot: it checks files and sweeps" if settings.cpu_only else f"in the pool {settings.pool}"
        console.print(f"Hone works on {settings.data} {what} (stop with Ctrl-C)")
        await _worker(resources, draining)
    return 0


async def ensure_tiny_model(resources: Resources, console: Console) -> None:
    """Build the tiny base model, if this data directory has none, and register it."""
    directory = resources.settings.data / "models" / TINY_MODEL
    if not (directory / "model.safetensors").exists():
        console.print(f"Building the tiny base model {TINY_MODEL}; this takes about a minute, once.")
        build = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker.tiny_model", "--output", str(directory)),
            stdin=asyncio.subprocess.DEVNULL,
            env=environment.for_a_child(),
        )
        try:
            status = await build.wait()
        finally:
            if build.returncode is None:  # we were told to stop
                build.kill()
        if status != 0:
            raise CannotDo("The tiny base model could not be built; HONE_TINY_MODEL=false starts without it.")
    await base_import.run(resources, model_id=TINY_MODEL, source=str(directory))


def require_training_libraries(trouble: str, *, otherwise: str = "") -> None:
    """CannotDo, with what to do, where the `worker` extra is not installed."""
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise CannotDo(f"{trouble}: {', '.join(missing)} not installed. Install 'hone[worker]'{otherwise}.")


async def _first_steps(resources: Resources, console: Console, *, trains: bool) -> None:
    settings = resources.settings
    console.print(f"Data:     {settings.data}")
    await _try_storage(resources, console)
    await _seal_secrets(resources, console)
    async with resources.write() as session:
        made = await keys.bootstrap(session, api_key=settings.api_key.get_secret_value() if settings.api_key else None)
    if made is not None:
        console.print(f"API key:  {made}  (shown this once; `hone keys create` makes another)")
    async with resources.read() as session:
        known = await base_models.find(session, TINY_MODEL)
    if trains and settings.tiny_model and known is None:
        await ensure_tiny_model(resources, console)
    async with resources.read() as session:
        registered = await base_models.search(session)
    console.print(f"Models:   {', '.join(base.id for base in registered) or 'none; see `hone models add --help`'}")


async def _try_storage(resources: Resources, console: Console) -> None:
    """Wrong settings are told at once. A store that is only away is no reason not to start: it may come back."""
    try:
        await trial.run(resources.storage)
    except StorageRefused as error:
        raise CannotDo(f"storage cannot be used: {error}. Check the HONE_S3_ settings.") from error
    except StorageUnavailable as error:
        console.print(f"Storage does not work at the moment: {redact(str(error))}", style="yellow")
    if resources.settings.s3_bucket:
        console.print(f"Objects:  S3 bucket {resources.settings.s3_bucket}")


async def _seal_secrets(resources: Resources, console: Console) -> None:
    """What an earlier version has stored in clear is sealed before anything else is done."""
    try:
        count = await secret_upkeep.run(resources, Seal.WHAT_IS_CLEAR)
    except CannotSeal as error:
        raise CannotDo(
            "the database holds secrets of webhooks in clear, and there is no key to seal them with. Set "
            "HONE_SECRET_KEYS to what `hone secrets new-key` prints, the same for all processes."
        ) from error
    except Unavailable:
        console.print("The database does not answer at the moment; its secrets are not checked.", style="yellow")
        return
    if count.sealed:
        console.print(f"Secrets:  those of {count.sealed} webhook endpoints, stored in clear until now, are sealed")
    if count.unreadable:
        console.print(
            f"The secrets of {count.unreadable} of {count.seen} webhook endpoints cannot be read; what they are to be "
            "told waits. Add the key that they were sealed with to HONE_SECRET_KEYS.",
            style="yellow",
        )


async def _worker(resources: Resources, draining: asyncio.Event) -> None:
    # Here, so that an API-only process carries none of a worker's code.
    from worker import main as worker_main

    origin.set(Origin("worker"))
    await worker_main.work(resources, draining)


async def _stop_others_when_over(part: Awaitable[None], draining: asyncio.Event) -> None:
    """Without the API the worker has nothing to do here."""
    try:
        await part
    finally:
        draining.set()


async def _stop_others_at_a_fault(part: Awaitable[None], draining: asyncio.Event) -> None:
    """The API does not outlive a worker that has failed."""
    try:
        await part
    except BaseException:
        draining.set()
        raise


def _draining_at_signals(console: Console) -> asyncio.Event:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process at once."""
    draining = asyncio.Event()

    def stop() -> None:
        if draining.is_set():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        draining.set()
        console.print("Stopping: running jobs write a checkpoint and go back to the queue. Again to stop at once.")

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return draining


def _listen(settings: Settings) -> socket.socket:
    """Bound before anything else is done, so that a taken port is told at once."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise CannotDo(f"cannot listen on {place} ({error.strerror}); choose another with --port.") from error


def _connections(most: int) -> int:
    """As many as are allowed and as there can be, each of which is a file to the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        most = min(most, max(soft - _OTHER_FILES, soft // 2))
    return most


def _shown_host(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104


class _Server(uvicorn.Server):
    """Leaves the signals to us: at a stop the worker drains while the API still answers."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
