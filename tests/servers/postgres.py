"""A private PostgreSQL: in a temporary directory, on a free port of this machine, gone at the end."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg

from tests.servers.processes import end_with_parent

_OWNER = "postgres"  # the server refuses to run as root
_PASSWORD = "a-secret-of-postgres"  # which it does not ask for; it is there to be kept secret
_START_SECONDS = 30
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    # Nothing here outlives the machine, so nothing waits for its disk.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
}


def binaries() -> Path | None:
    """The directory of the server's programs: that of the search path, or the newest of Debian's."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    debian = Path("/usr/lib/postgresql")
    versions = sorted(debian.iterdir(), key=lambda path: int(path.name)) if debian.is_dir() else []
    return versions[-1] / "bin" if versions else None


class Postgres:
    """`url(name)` is that of a database. Statements go through a connection of their own."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self._data = directory / "data"
        self._log = directory / "log"
        self._programs = programs
        self._process: subprocess.Popen[Any] | None = None
        self.port = 0

    def url(self, database: str, *, port: int | None = None) -> str:
        """`port` is another one that leads here, such as a proxy's."""
        return f"postgresql://{_OWNER}:{_PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def initialize(self) -> None:
        # Not the C locale: a server sorts as its language does, and so must be what we test on.
        language = ("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")
        command = [self._programs / "initdb", "--no-sync", "--auth=trust", f"--username={_OWNER}", *language]
        done = subprocess.run(
            [*command, f"--pgdata={self._data}"], capture_output=True, text=True, check=False, **_identity()
        )
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr}")

    def start(self) -> None:
        """On the port it had before, or on a free one."""
        for _ in range(10):  # another process may take the port that was free a moment ago
            if self._try_to_start(self.port or _free_port()):
                return
        raise RuntimeError(f"PostgreSQL does not start: {self._log.read_text()[-2000:]}")

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is PostgreSQL's fast shutdown: it ends the connections. SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        """Not to be called where an event loop runs."""

        async def run() -> None:
            connection = await asyncpg.connect(self.url(database))
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(run())

    def create(self, name: str, *, template: str = "template1") -> None:
        """A database that begins as a copy of `template`, to which nobody may be connected."""
        self.execute(f'create database "{name}" template "{template}"')

    def drop(self, name: str) -> None:
        self.execute(f'drop database "{name}" with (force)')

    def _try_to_start(self, port: int) -> bool:
        settings = [f"-c{name}={value}" for name, value in (_SETTINGS | {"port": str(port)}).items()]
        with self._log.open("ab") as log:
            process: subprocess.Popen[Any] = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent(signal.SIGINT),
                **_identity(),
            )
        deadline = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if _is_ready(self._data / "postmaster.pid"):
                self._process, self.port = process, port
                return True
            time.sleep(0.02)
        process.kill()
        process.wait()
        return False


@contextmanager
def running() -> Iterator[Postgres]:
    programs = binaries()
    assert programs is not None, "ask `tests.servers.missing` first"
    with TemporaryDirectory(prefix="hone-postgres-") as name:
        directory = Path(name)
        if os.getuid() == 0:
            shutil.chown(directory, _OWNER)
        server = Postgres(directory, programs)
        server.initialize()
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)


def _identity() -> dict[str, Any]:
    """How to start a program of the server."""
    if os.getuid() != 0:
        return {}
    account = pwd.getpwnam(_OWNER)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": "/"}


def _is_ready(pid_file: Path) -> bool:
    """The last line of the server's file says what it is doing."""
    try:
        lines = pid_file.read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[7].strip() == "ready"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
