"""The soak's jobs: a few kinds with their data, the clients that ask for them, and what each must end as."""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from openai import APIConnectionError, APIStatusError, OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.processes import BASE, TERMINAL, rows

Answer = TypeVar("Answer")
_RETRY_SECONDS = 0.3


@dataclass(frozen=True)
class Kind:
    """`share` is the part of all jobs that are of this kind. `end` is what each of them must come to."""

    name: str
    share: float
    train: bytes
    valid: bytes | None
    body: dict[str, Any]
    end: str = "succeeded"


@dataclass
class Ask:
    """One job that a client wants: when it is asked for, and what came of it."""

    kind: Kind
    at_seconds: float
    cancel_after_seconds: float | None
    job_id: str | None = None
    lost_answers: int = 0  # requests to create it whose answers never came


def kinds(long_epochs: int) -> list[Kind]:
    """Small ones of both methods, some with a file to validate on, some that cannot be trained on, and long ones."""
    chats, others = rows(12), rows(6, start=100)
    no_answers = b"".join(
        json.dumps({"messages": [{"role": "user", "content": f"What is {number}?"}]}).encode() + b"\n"
        for number in range(12)
    )
    return [
        Kind("supervised", 0.41, chats, None, _supervised(2)),
        Kind("validated", 0.2, chats, others, _supervised(2)),
        Kind("preference", 0.16, _pairs(12), None, _method("dpo", 1)),
        Kind("cancelled", 0.1, chats, None, _supervised(20), end="cancelled"),
        Kind("refused", 0.1, no_answers, None, _supervised(2), end="failed"),
        Kind("long", 0.03, rows(192), others, _supervised(long_epochs)),
    ]


def plan(number: int, seconds: float, *, seed: int, long_epochs: int) -> list[Ask]:
    """That many jobs, over the first two thirds of the time; the first of each kind are asked for at once."""
    chosen = random.Random(seed)
    of_kinds = [kind for kind in kinds(long_epochs) for _ in range(max(1, round(kind.share * number)))][:number]
    of_kinds += [kinds(long_epochs)[0]] * (number - len(of_kinds))
    chosen.shuffle(of_kinds)
    # Long ones come first, so that they cross as many faults as there are.
    of_kinds.sort(key=lambda kind: kind.name != "long")
    pause = seconds * 2 / 3 / number
    return [
        Ask(kind, place * pause, chosen.uniform(0, 6) if kind.end == "cancelled" else None)
        for place, kind in enumerate(of_kinds)
    ]


@dataclass
class Caller:
    """Does what a client must that knows of several servers: whoever does not answer is left for another.

    `clients` gives one for each server that is up. A job's creation is
    repeated too, and may then have made two jobs: lost answers are counted.
    """

    clients: Callable[[], list[OpenAI]]
    chosen: random.Random
    over: threading.Event

    def ask(self, request: Callable[[OpenAI], Answer], *, lost: Callable[[], None] = lambda: None) -> Answer:
        while True:
            try:
                return request(self.chosen.choice(self.clients()))
            except APIStatusError as error:
                if error.status_code != 503:
                    raise
                lost()
            except (APIConnectionError, IndexError):
                lost()
            if self.over.is_set():
                raise TimeoutError("the soak is over, and no server answers")
            time.sleep(_RETRY_SECONDS)

    def create(self, ask: Ask) -> None:
        """Upload the files and create the job; sets its id."""

        def lost() -> None:
            ask.lost_answers += 1

        training = self._upload(ask.kind.train)
        body = {"model": BASE, "training_file": training, "seed": 7, "method": ask.kind.body}
        if ask.kind.valid is not None:
            body["validation_file"] = self._upload(ask.kind.valid)
        ask.job_id = self.ask(lambda client: client.fine_tuning.jobs.create(**body), lost=lost).id

    def cancel(self, job_id: str) -> None:
        """Where the job has ended before, that is told and it stays so."""
        try:
            self.ask(lambda client: client.fine_tuning.jobs.cancel(job_id))
        except APIStatusError as error:
            if error.status_code != 400:
                raise

    def job(self, job_id: str) -> FineTuningJob:
        return self.ask(lambda client: client.fine_tuning.jobs.retrieve(job_id))

    def have_all_ended(self) -> bool:
        """Those too whose creation was never answered."""
        return all(
            job.status in TERMINAL for job in self.ask(lambda client: list(client.fine_tuning.jobs.list(limit=100)))
        )

    def wait(self, job_id: str, *, seconds: float) -> FineTuningJob:
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id)).status not in TERMINAL and time.monotonic() < deadline:
            time.sleep(0.25)
        return job

    def metrics(self, job: FineTuningJob) -> str:
        """The file of step metrics, by which runs are compared: what is in it is exact to the bit."""
        return self.ask(lambda client: client.files.content(job.result_files[0])).text

    def _upload(self, content: bytes) -> str:
        return self.ask(lambda client: client.files.create(file=("data.jsonl", content), purpose="fine-tune")).id


def _supervised(epochs: int) -> dict[str, Any]:
    return _method("supervised", epochs)


def _method(kind: str, epochs: int) -> dict[str, Any]:
    return {"type": kind, kind: {"hyperparameters": {"n_epochs": epochs, "batch_size": 4}}}


def _pairs(count: int) -> bytes:
    lines: list[str] = []
    for number in range(count):
        answers = [f"{7 * number} days.", "That is a good question, let me think about it for a while."]
        better, worse = ([{"role": "assistant", "content": text}] for text in answers)
        asked = {"role": "user", "content": f"How many days are there in {number} weeks?"}
        row = {"input": {"messages": [asked]}, "preferred_output": better, "non_preferred_output": worse}
        lines.append(json.dumps(row))
    return ("\n".join(lines) + "\n").encode()
