"""A private redis-server, on a free port and in a directory of its own; it ends with the tests."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import redis

from tests.servers import processes


class RedisServer:
    """Started by `running`. Its port stays the same when it is started again."""

    def __init__(
        self,
        directory: Path,
        *,
        password: str | None = None,
        append_only: bool = False,
        certificate: Path | None = None,
    ) -> None:
        """`certificate` holds a key too; with it, TLS is spoken on `tls_port`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.port, self.tls_port = _free_port(), _free_port()
        self._certificate = certificate
        self.socket = directory / "redis.sock"
        self._directory = directory
        self._password = password
        self._append_only = append_only
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.url_through(self.port)

    def url_through(self, port: int, *, database: int = 0) -> str:
        """Its address behind a proxy on `port`, or a database of it."""
        return f"redis://{self._login}127.0.0.1:{port}/{database}"

    @property
    def socket_url(self) -> str:
        return f"unix://{self._login}{self.socket}"

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.url, socket_timeout=5)

    def start(self) -> None:
        """Returns once it answers."""
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "unixsocket": str(self.socket),
            "dir": str(self._directory),
            "save": "",
            "databases": "1000",
            "appendonly": "yes" if self._append_only else "no",
            "appendfsync": "always",
            "requirepass": self._password or "",
        }
        if self._certificate is not None:
            file = str(self._certificate)
            tls = {"port": str(self.tls_port), "cert-file": file, "key-file": file, "auth-clients": "no"}
            settings |= {f"tls-{name}": value for name, value in tls.items()}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        with (self._directory / "redis.log").open("ab") as log:
            self._popen = subprocess.Popen(
                [program() or "redis-server", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=processes.end_with_parent(signal.SIGKILL),
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._popen.poll() is None, (self._directory / "redis.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        """As power loss would."""
        if self._popen is not None:
            self.thaw()
            self._popen.kill()
            self._popen.wait(10)
            self._popen = None

    def freeze(self) -> None:
        """From here on it accepts connections and data, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._popen is not None
        with suppress(ProcessLookupError):
            os.kill(self._popen.pid, number)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    @property
    def _login(self) -> str:
        return f":{quote(self._password, safe='')}@" if self._password else ""


def program() -> str | None:
    """The redis-server of this machine, if there is one."""
    return shutil.which("redis-server")


@contextmanager
def running(
    directory: Path, *, password: str | None = None, append_only: bool = False, certificate: Path | None = None
) -> Iterator[RedisServer]:
    server = RedisServer(directory, password=password, append_only=append_only, certificate=certificate)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
