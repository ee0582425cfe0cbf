"""`hone` as its users run it: real processes on one data directory, a real client, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from app.settings import Settings
from tests.backends import Site
from tests.history.recorder import History
from tests.history.secrets import HUB_TOKEN, secrets_of

KEY = "sk-hone-e2e-0123456789abcdef"
BASE = "tiny-llama"
TERMINAL = {"succeeded", "failed", "cancelled"}
PATIENCE = float(os.environ.get("HONE_TEST_PATIENCE", "1"))  # on a machine that does much else, more than 1
Value = TypeVar("Value")


@dataclass
class Installation:
    """A data directory, the settings of every process that works on it, and all that they are asked by clients."""

    data: Path
    settings: dict[str, str] = field(default_factory=dict)
    history: History = field(default_factory=History, repr=False)

    @classmethod
    def at(cls, site: Site, **settings: str) -> "Installation":
        return cls(site.data, site.environment | {f"HONE_{name.upper()}": value for name, value in settings.items()})

    @property
    def environment(self) -> dict[str, str]:
        ours = {
            "HONE_DATA_DIRECTORY": str(self.data),
            "HONE_API_KEY": KEY,
            "HF_TOKEN": HUB_TOKEN,
            "HONE_TINY_MODEL": "false",
            "HONE_TRAINER_THREADS": "1",
            "HONE_LEASE_SECONDS": "30",  # long, so that no test passes by waiting for one to expire
        }
        return os.environ | ours | self.settings

    def as_settings(self) -> Settings:
        """As the processes read them, to look at the same rows and objects."""
        ours = {name.removeprefix("HONE_").lower(): value for name, value in self.settings.items()}
        return Settings.model_validate({"data_directory": self.data, "api_key": KEY, **ours})

    def recorder(self) -> History:
        """Its history, which looks for its secrets in each answer."""
        self.history.secrets |= secrets_of(self.as_settings())
        return self.history

    def hone(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = [sys.executable, "-m", "app.cli", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=120)

    @contextmanager
    def running(self, *arguments: str, until: str) -> Iterator["Process"]:
        """A process that is ready once it has printed a line with `until`; killed at the end if it still runs."""
        process = Process(self, arguments)
        try:
            process.wait_for_line(until)
            yield process
        finally:
            process.kill()

    def serving(self, *arguments: str):
        return self.running("serve", "--port", "0", *arguments, until="Hone serves")

    def working(self, *arguments: str):
        return self.running("worker", *arguments, until="Hone works")

    def elsewhere(self) -> "Installation":
        """The same installation seen from another machine: other processes there cannot be told dead by their locks."""
        data = self.data.with_name(f"{self.data.name}-elsewhere-{time.monotonic_ns()}")
        data.mkdir()
        (data / "objects").symlink_to(self.data / "objects")
        there = {"HONE_DATABASE_URL": f"sqlite+aiosqlite:///{self.data / 'hone.db'}"}
        return Installation(data, there | self.settings, self.history)


class Process:
    def __init__(self, installation: Installation, arguments: tuple[str, ...]) -> None:
        self.installation = installation
        self.output = installation.data / f"{arguments[0]}.{time.monotonic_ns()}.log"
        with self.output.open("wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "app.cli", *arguments],
                env=installation.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait_for_line(self, text: str) -> str:
        def find() -> str | None:
            assert self._popen.poll() is None, self.output.read_text()
            return next((line for line in self.output.read_text().splitlines() if text in line), None)

        return wait_for(find, seconds=60)

    @property
    def url(self) -> str:
        return self.wait_for_line("Hone serves").split()[2].removesuffix("/v1")

    def client(self) -> OpenAI:
        return self.installation.recorder().openai(api_key=KEY, base_url=f"{self.url}/v1")

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {KEY}"}
        hooks = self.installation.recorder().hooks
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, event_hooks=hooks)

    def trainers(self) -> list[int]:
        """The pids of the trainers that this process has started."""
        listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
        return [int(pid) for pid, parent, args in rows if int(parent) == self.pid and "worker.trainer" in args]

    def kill(self) -> None:
        """As power loss or the OOM killer would: this process and nothing else."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait(10)

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        self.signal(signal.SIGINT)
        return self.ended()

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def ended(self) -> int:
        """Waits for the end and returns the exit status."""
        return self._popen.wait(60 * PATIENCE)


def wait_for(find: Callable[[], Value | None], *, seconds: float) -> Value:
    """Poll until `find` returns something; fails after `seconds`."""
    deadline = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < deadline:
        found = find()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} seconds in vain")


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def rows(count: int, *, start: int = 0) -> bytes:
    """Short chats, all different, some of several turns."""
    lines: list[str] = []
    for number in range(start, start + count):
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": f"How many days are there in {number} weeks?"},
            {"role": "assistant", "content": f"There are {7 * number} days in {number} weeks."},
        ]
        if number % 3 == 0:
            messages += [
                {"role": "user", "content": "And in one more week?"},
                {"role": "assistant", "content": f"There are {7 * number + 7} days, seven more."},
            ]
        lines.append(json.dumps({"messages": messages}))
    return ("\n".join(lines) + "\n").encode()


def create_job(client: OpenAI, *, epochs: int, train: bytes | None = None, **fields: object) -> FineTuningJob:
    """48 rows, 12 steps an epoch; validated on 12 others."""
    training = client.files.create(file=("train.jsonl", train or rows(48)), purpose="fine-tune")
    validation = client.files.create(file=("valid.jsonl", rows(12, start=100)), purpose="fine-tune")
    body = {
        "model": BASE,
        "training_file": training.id,
        "validation_file": validation.id,
        "seed": 7,
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 4}},
        },
    }
    return client.fine_tuning.jobs.create(**(body | fields))  # pyright: ignore[reportArgumentType]


def wait_for_step(client: OpenAI, job_id: str, step: int, *, seconds: float = 90) -> FineTuningJob:
    """Returns once the job has taken that step; fails if it ends before."""

    def look() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status not in TERMINAL, (job.status, job.error)
        return job if job.to_dict()["hone"]["current_step"] >= step else None  # pyright: ignore

    return wait_for(look, seconds=seconds)


def wait_for_end(client: OpenAI, job_id: str, *, seconds: float = 120) -> FineTuningJob:
    def look() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in TERMINAL else None

    return wait_for(look, seconds=seconds)


def wait_for_status(client: OpenAI, job_id: str, status: str, *, seconds: float = 60) -> FineTuningJob:
    def look() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status == status else None

    return wait_for(look, seconds=seconds)


def messages(client: OpenAI, job_id: str) -> list[str]:
    """All event messages, oldest first."""
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]


def metrics(client: OpenAI, job: FineTuningJob) -> list[str]:
    """The lines of the step metrics file."""
    assert job.status == "succeeded", job.error
    return client.files.content(job.result_files[0]).text.splitlines()
