"""One tracker's process: figures in as lines on stdin, one answer to each line on stdout.

    python -m worker.tracker PARENT_PID

It is apart from the worker so that what the libraries of others do, hang above all, holds up nobody. It knows the
network and the secret of its one place, and nothing else of Hone: no database, no storage, no job but its own.
"""

import os
import sys
from collections.abc import Sequence
from typing import IO, Protocol

from worker.child import die_with_parent
from worker.contract import tracking
from worker.contract.tracking import Close, Done, Failed, Log, Open, Opened, StepFigures, TrackerKind

_MOST_CHARACTERS = 300


class Run(Protocol):
    """A run at a place, open from its construction on."""

    run_id: str
    url: str | None
    last_step: int

    def log(self, steps: Sequence[StepFigures]) -> None: ...

    def close(self, command: Close) -> None: ...


def main(arguments: list[str]) -> int:
    die_with_parent(int(arguments[0]))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the libraries print is no answer
    try:
        _serve(sys.stdin.buffer, answers)
    except Exception as error:
        _say(answers, Failed(reason=_one_line(error)))
        return 1
    return 0


def _serve(lines: IO[bytes], answers: IO[bytes]) -> None:
    run: Run | None = None
    for line in lines:
        command = tracking.commands.validate_json(line)
        if isinstance(command, Open):
            run = _open(command)
            _say(answers, Opened(run_id=run.run_id, url=run.url, last_step=run.last_step))
            continue
        assert run is not None, "the first command opens the run"
        if isinstance(command, Log):
            run.log(command.steps)
        else:
            run.close(command)
        _say(answers, Done())


def _open(command: Open) -> Run:
    """The libraries are imported here: each process needs one of them."""
    kind: TrackerKind = command.kind
    if kind == "wandb":
        from worker.trackers.weights_and_biases import WandbRun

        return WandbRun(command)
    if kind == "mlflow":
        from worker.trackers.mlflow_server import MlflowRun

        return MlflowRun(command)
    from worker.trackers.tensorboard_files import TensorboardRun

    return TensorboardRun(command)


def _say(answers: IO[bytes], answer: Opened | Done | Failed) -> None:
    answers.write(answer.model_dump_json().encode() + b"\n")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:_MOST_CHARACTERS]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
