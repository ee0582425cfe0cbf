"""`make test`: everything on the embedded backends; beside it the faults, and then what touches a backend again, on a
production's servers.

The faults wait for most of their time, and most of the rest keeps one core busy: so there are two lanes.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import pytest

from tests.servers import required

_EMBEDDED = ("--backends=embedded", "tests", "--ignore=tests/faults")
_PRODUCTION = (
    *("--backends=production", "tests/api", "--ignore=tests/api/test_schemathesis.py", "tests/services"),
    *("tests/adapters", "tests/worker", "tests/hostile/test_bad_inputs.py"),
    # The faults, too, drive whole installations.
    *("tests/e2e/test_whole_job.py", "tests/e2e/test_workers.py", "tests/e2e/test_secrets.py"),
)
_FAULTS = ("--backends=production", "--durations=20", "tests/faults")


def main() -> int:
    """The exit status of the first leg that fails, or 0."""
    missing = " and ".join(required.missing())
    if missing and required.are_required():
        print(f"Tests must run on a production's servers here, but {missing} is not installed.")
        return 1
    if missing:
        print(f"Only the embedded backends are tested: {missing} is not installed.", flush=True)
        return subprocess.run(_command("--backends=embedded", "tests"), check=False).returncode
    with tempfile.TemporaryFile() as said, ThreadPoolExecutor(1) as beside:
        lane = beside.submit(_run_all, (_FAULTS, _PRODUCTION), said)
        failed = _run(_EMBEDDED, None)
        print("The tests on a production's servers go on.", flush=True)
        failed_beside = lane.result()
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return failed or failed_beside


def _run_all(legs: tuple[tuple[str, ...], ...], output: IO[bytes]) -> int:
    failed = 0
    for leg in legs:
        status = _run(leg, output)
        failed = failed or status
        if status == pytest.ExitCode.INTERRUPTED:
            break
    return failed


def _run(leg: tuple[str, ...], output: IO[bytes] | None) -> int:
    told = f"pytest {' '.join(leg)}\n"
    if output is None:
        print(told, end="", flush=True)
    else:
        output.write(told.encode())
        output.flush()
    return subprocess.run(_command(*leg), stdout=output, stderr=output and subprocess.STDOUT, check=False).returncode


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *arguments]


if __name__ == "__main__":
    sys.exit(main())
