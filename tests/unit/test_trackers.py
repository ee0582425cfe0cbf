"""The tracker's process, asked as a worker asks it; its places are directories and servers of this machine."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.servers import trackers
from worker.contract import tracking
from worker.contract.tracking import Close, Done, Failed, Log, Open, Opened, StepFigures, TrackerKind


class Tracker:
    """One process, and what it has answered."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "PYTHONPATH": str(Path.cwd())}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.tracker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def ask(self, command: Open | Log | Close) -> Opened | Done | Failed:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command.model_dump_json().encode() + b"\n")
        self._process.stdin.flush()
        return tracking.answers.validate_json(self._process.stdout.readline())

    def open(self, kind: TrackerKind, access: dict[str, str], **options: Any) -> Opened | Done | Failed:
        return self.ask(
            Open(
                kind=kind,
                run="ftjob-1",
                job_id="ftjob-1",
                project_id="proj-1",
                base_model="acme/tiny",
                options=options,
                access=access,
                config={"seed": 7, "hyperparameters": {"n_epochs": 2}},
                work_directory=str(self.directory),
            )
        )

    def log(self, first: int, last: int) -> None:
        steps = [StepFigures(step=n, at=1e9 + n, figures={"train_loss": 1 / n}) for n in range(first, last + 1)]
        assert self.ask(Log(steps=steps)) == Done()

    def succeed(self) -> None:
        summary: dict[str, str | float | None] = {"status": "succeeded", "fine_tuned_model": "ft:tiny", "error": None}
        assert self.ask(Close(status="succeeded", summary=summary)) == Done()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    made: list[Tracker] = []

    def begin() -> Tracker:
        made.append(Tracker(tmp_path))
        return made[-1]

    yield begin
    for one in made:
        one.kill()


def test_wandb_gets_config_steps_and_summary(start: Any, tmp_path: Path) -> None:
    tracker: Tracker = start()
    access = {"offline": "true", "directory": str(tmp_path)}
    opened = tracker.open("wandb", access, project="hone", name=None, entity=None, tags=["mine"])
    assert opened == Opened(run_id="ftjob-1", url=None, last_step=0)
    tracker.log(1, 5)
    tracker.succeed()

    run = trackers.offline_run(tmp_path)
    assert (run.project, run.run_id, run.name) == ("hone", "ftjob-1", "ftjob-1")
    assert run.tags == ["mine", "hone/finetune", "hone/acme/tiny", "hone/ftjob-1"]
    assert run.config["hyperparameters"] == {"n_epochs": 2}
    assert run.history == {n: {"train_loss": 1 / n} for n in range(1, 6)}
    assert run.summary["hone/fine_tuned_model"] == "ft:tiny"
    assert run.exit_code == 0


def test_mlflow_goes_on_with_the_run_of_a_worker_that_died(start: Any, tmp_path: Path) -> None:
    access = {"tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    first: Tracker = start()
    opened = first.open("mlflow", access, experiment="tests", tags={"team": "search"})
    assert isinstance(opened, Opened), opened
    first.log(1, 3)
    first.kill()

    second: Tracker = start()
    again = second.open("mlflow", access, experiment="tests", tags={"team": "search"})
    assert again == Opened(run_id=opened.run_id, last_step=3)
    second.log(4, 5)
    second.succeed()

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        metrics = database.execute("select step, value from metrics where key = 'train_loss' order by step").fetchall()
        runs = database.execute("select run_uuid, status, name from runs").fetchall()
        tags = dict(database.execute("select key, value from tags").fetchall())
        parameters = dict(database.execute("select key, value from params").fetchall())
    assert metrics == [(n, 1 / n) for n in range(1, 6)]
    assert runs == [(opened.run_id, "FINISHED", "ftjob-1")]
    assert (tags["team"], tags["hone.fine_tuned_model"]) == ("search", "ft:tiny")
    assert (parameters["seed"], parameters["hyperparameters.n_epochs"]) == ("7", "2")


def test_mlflow_gets_a_commands_figures_in_few_requests(start: Any) -> None:
    """A server that takes a second for each would else be too slow for a command of two hundred steps."""
    batches: list[list[dict[str, Any]]] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({"experiment": {"experiment_id": "1", "name": "tests"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/log-batch") and "metrics" in body and body["metrics"]:
                batches.append(body["metrics"])
            run = {"info": {"run_id": "run-1", "run_uuid": "run-1", "experiment_id": "1"}, "data": {}}
            self._reply({"run": run} if self.path.endswith("/create") else {})

        def _reply(self, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        tracker: Tracker = start()
        opened = tracker.open("mlflow", {"tracking_uri": f"http://127.0.0.1:{server.server_port}"}, experiment="tests")
        assert opened == Opened(run_id="run-1")
        tracker.log(1, 1000)
        assert [len(batch) for batch in batches] == [1000]
        tracker.log(1001, 2500)
        server.shutdown()
    assert [len(batch) for batch in batches] == [1000, 1000, 500]
    assert [metric["step"] for batch in batches for metric in batch] == list(range(1, 2501))


def test_tensorboard_files_hold_each_step_once_after_a_resume(start: Any, tmp_path: Path) -> None:
    for last in (3, 5):
        tracker: Tracker = start()
        assert tracker.open("tensorboard", {"directory": str(tmp_path / "board")}) == Opened(run_id="ftjob-1")
        tracker.log(1, last)
        if last == 5:
            tracker.succeed()
        tracker.kill()

    scalars = trackers.scalars(tmp_path / "board" / "proj-1" / "ftjob-1")
    assert [step for step, _ in scalars["train_loss"]] == [1, 2, 3, 4, 5]
    assert [value for _, value in scalars["train_loss"]] == pytest.approx([1 / n for n in range(1, 6)])


def test_a_place_that_refuses_is_one_line(start: Any) -> None:
    tracker: Tracker = start()
    answer = tracker.open("mlflow", {"tracking_uri": "file:///dev/null/nowhere"}, experiment="tests")
    assert isinstance(answer, Failed)
    assert len(answer.reason.splitlines()) == 1
    assert json.loads(answer.model_dump_json())["type"] == "failed"
