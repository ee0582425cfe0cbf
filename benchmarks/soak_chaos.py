"""The soak's processes and what befalls them: each is struck at random, and started again as a supervisor would."""

import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
from openai import OpenAI

from tests.e2e.processes import Installation, Process
from tests.servers.postgres import Postgres
from tests.servers.redis import RedisServer

_STRIKES = {"SIGKILL": 0.4, "SIGTERM": 0.3, "SIGSTOP": 0.3}


@dataclass(frozen=True)
class Strike:
    """`log` is that of the process which was struck; `back_after_seconds`, until its successor was ready."""

    member: str
    what: str
    at: datetime
    log: Path
    back_after_seconds: float


@dataclass
class Member:
    """One place in the installation that always has a process."""

    name: str
    installation: Installation
    arguments: tuple[str, ...]
    ready_line: str
    process: Process | None = None
    client: OpenAI | None = None
    busy: threading.Lock = field(default_factory=threading.Lock)  # while it is struck

    def start(self) -> None:
        """Until it is ready, and again if it ends before: the database may be away."""
        while True:
            process = Process(self.installation, self.arguments)
            try:
                process.wait_for_line(self.ready_line)
            except AssertionError:
                process.kill()
                time.sleep(0.5)
                continue
            self.process = process
            # A server that is asleep is soon left for another.
            self.client = process.client().with_options(timeout=10) if self.arguments[0] == "serve" else None
            return

    def strike(self, what: str, asleep_seconds: float) -> Strike:
        assert self.process is not None
        struck, began, at = self.process, time.monotonic(), datetime.now(UTC)
        if what == "SIGSTOP":  # others may take its jobs, and it wakes among them
            struck.signal(signal.SIGSTOP)
            time.sleep(asleep_seconds)
            struck.signal(signal.SIGCONT)
            return Strike(self.name, what, at, struck.output, time.monotonic() - began)
        self.client = None
        if what == "SIGTERM":
            struck.signal(signal.SIGTERM)
            with suppress(Exception):
                struck.ended()
        struck.kill()
        self.start()
        return Strike(self.name, what, at, struck.output, time.monotonic() - began)


@dataclass
class Chaos:
    """Strikes one of the members every few seconds, and restarts the database and Redis twice each."""

    members: list[Member]
    database: Postgres
    wakes: RedisServer
    chosen: random.Random
    pause_seconds: float
    asleep_seconds: float
    strikes: list[Strike] = field(default_factory=list)
    restarts: dict[str, list[float]] = field(default_factory=dict)  # seconds until all servers answered again

    def clients(self) -> list[OpenAI]:
        return [member.client for member in self.members if member.client is not None]

    def run(self, seconds: float) -> None:
        """Until the time is over; then all members are up and undisturbed."""
        began = time.monotonic()
        restarts = sorted(
            (share * seconds, which)
            for which, shares in (("postgres", (0.25, 0.6)), ("redis", (0.4, 0.75)))
            for share in shares
        )
        striking: list[threading.Thread] = []
        while (passed := time.monotonic() - began) < seconds:
            if restarts and passed >= restarts[0][0]:
                self._restart(restarts.pop(0)[1])
            else:
                weights = [2 if member.arguments[0] == "worker" else 1 for member in self.members]
                member = self.chosen.choices(self.members, weights)[0]
                what = self.chosen.choices(list(_STRIKES), list(_STRIKES.values()))[0]
                asleep = self.asleep_seconds * self.chosen.uniform(0.5, 2)
                if member.busy.acquire(blocking=False):
                    striking.append(threading.Thread(target=self._strike, args=(member, what, asleep)))
                    striking[-1].start()
            time.sleep(self.pause_seconds * self.chosen.uniform(0.5, 1.5))
        for thread in striking:
            thread.join()

    def kills(self) -> Counter[str]:
        return Counter(strike.what for strike in self.strikes)

    def _strike(self, member: Member, what: str, asleep_seconds: float) -> None:
        try:
            self.strikes.append(member.strike(what, asleep_seconds))
        finally:
            member.busy.release()

    def _restart(self, which: str) -> None:
        if which == "postgres":
            self.database.stop()  # fast: connections end, what was committed is kept
            time.sleep(1)
            self.database.start()
        else:
            self.wakes.kill()
            time.sleep(1)
            self.wakes.start()
        began = time.monotonic()
        while not all(map(_is_well, self.clients())):
            time.sleep(0.1)
        self.restarts.setdefault(which, []).append(time.monotonic() - began)


def _is_well(client: OpenAI) -> bool:
    try:
        answer = httpx.get(f"{str(client.base_url).removesuffix('/v1/')}/readyz", timeout=5)
    except httpx.HTTPError:
        return True  # it was struck meanwhile, which is not what is measured here
    return answer.status_code == 200 and answer.json().get("queue", "ok") == "ok"
