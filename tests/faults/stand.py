"""An API server on a database that can be broken, and clients that write down every answer."""

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from app.db import migrations
from app.resources import open_resources
from app.settings import Settings
from tests import factories
from tests.conftest import serve
from tests.faults import proxy
from tests.faults.proxy import Proxy
from tests.history import keeping
from tests.history.recorder import History
from tests.history.secrets import secrets_of
from tests.servers.postgres import Postgres

PROMISED_SECONDS = 5.0  # within which every request is answered, whatever the database does
_numbers = itertools.count()


@dataclass(frozen=True)
class Answer:
    method: str
    path: str
    status: int
    seconds: float
    body: Any
    retry_after: str | None


@dataclass
class Stand:
    """`settings` are the server's, whose way to the database leads through the proxy; `direct` avoids it."""

    client: httpx.Client
    training_file: str
    settings: Settings
    direct: Settings
    proxy: Proxy | None
    answers: list[Answer] = field(default_factory=list)

    def request(self, method: str, path: str, **more: Any) -> Answer:
        began = time.monotonic()
        answer = self.client.request(method, path, **more)
        seconds = time.monotonic() - began
        made = Answer(method, path, answer.status_code, seconds, answer.json(), answer.headers.get("retry-after"))
        self.answers.append(made)
        return made

    def create_job(self, *, key: str | None = None) -> Answer:
        body = {"model": factories.BASE_MODEL, "training_file": self.training_file}
        headers = {"Idempotency-Key": key} if key is not None else {}
        return self.request("POST", "/v1/fine_tuning/jobs", json=body, headers=headers)

    def jobs(self) -> list[dict[str, Any]]:
        answer = self.request("GET", "/v1/fine_tuning/jobs?limit=100")
        assert answer.status == 200, answer
        assert not answer.body["has_more"]
        return answer.body["data"]

    def wait_until_it_answers(self, *, seconds: float = 10) -> float:
        """How many seconds it took."""
        began = time.monotonic()
        while self.request("GET", "/readyz").status != 200:
            assert time.monotonic() - began < seconds, "the server does not recover"
            time.sleep(0.05)
        return time.monotonic() - began

    @contextmanager
    def busy(self, *actions: Callable[[], object], clients: int = 2) -> Iterator[None]:
        """Each action is repeated by that many clients as long as the block lasts, and to the end of its last turn."""
        over = threading.Event()

        def repeat(action: Callable[[], object]) -> None:
            while not over.is_set():
                action()
                time.sleep(0.01)

        with ThreadPoolExecutor(len(actions) * clients) as pool:
            working = [pool.submit(repeat, action) for action in actions for _ in range(clients)]
            try:
                yield
            finally:
                over.set()
                for one in working:
                    one.result(60)

    def check_answers(self) -> Counter[int]:
        """Promises about every answer so far; returns how often each status came."""
        for answer in self.answers:
            assert answer.status in (200, 503), answer
            assert answer.seconds < PROMISED_SECONDS, answer
            if answer.status == 503:
                assert int(answer.retry_after or 0) >= 1, answer
                assert answer.body["error"]["type"] == "server_error", answer
            if answer.path == "/healthz":
                assert answer.status == 200, answer
        return Counter(answer.status for answer in self.answers)

    def check_jobs(self) -> None:
        """What was acknowledged is there; what was not is there whole or not at all."""
        posts = [answer for answer in self.answers if answer.method == "POST"]
        acknowledged = {answer.body["id"] for answer in posts if answer.status == 200}
        found = {job["id"] for job in self.jobs()}
        assert acknowledged <= found
        assert len(found - acknowledged) <= len([answer for answer in posts if answer.status != 200])
        for job_id in found:
            told = self.request("GET", f"/v1/fine_tuning/jobs/{job_id}/events").body["data"]
            assert [event["message"].split(":")[0] for event in told] == [
                "Validating training file",
                "Created fine-tuning job",
            ]


@contextmanager
def on_postgres(server: Postgres, data: Path, **settings: Any) -> Iterator[Stand]:
    name = f"stand-{next(_numbers)}"
    server.create(name)
    migrations.upgrade(server.url(name))
    with proxy.running(server.port) as between:
        try:
            direct = Settings.model_validate({"data_directory": data, "database_url": server.url(name), **settings})
            through = direct.model_copy(update={"database_url": SecretStr(server.url(name, port=between.port))})
            yield from _stand(through, direct, between)
        finally:
            between.heal()
            server.drop(name)


@contextmanager
def on_sqlite(data: Path, **settings: Any) -> Iterator[Stand]:
    chosen = Settings(data_directory=data, **settings)
    migrations.upgrade(chosen.resolved_database_url)
    yield from _stand(chosen, chosen, None)


def _stand(settings: Settings, direct: Settings, between: Proxy | None) -> Iterator[Stand]:
    key, training_file = asyncio.run(_prepare(direct))
    fresh = httpx.Limits(max_keepalive_connections=0)  # each request by a connection of its own
    headers = {"Authorization": f"Bearer {key}"}
    for served in serve(settings):
        history = History(secrets={key, *secrets_of(direct)})
        with httpx.Client(
            base_url=served.url, headers=headers, limits=fresh, timeout=30, event_hooks=history.hooks
        ) as client:
            yield Stand(client, training_file, settings, direct, between)
            asyncio.run(keeping.assert_kept_by_server(direct, history))


async def _prepare(settings: Settings) -> tuple[str, str]:
    async with open_resources(settings) as resources:
        principal, key = await factories.project(resources)
        await factories.base_model(resources)
        return key, (await factories.file(resources, principal)).id
