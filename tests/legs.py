"""`make test`: everything on the embedded backends, then what touches a backend again on a production's servers.

The faults run beside all that: they wait for most of their time.
"""

import subprocess
import sys
import tempfile

from tests.servers import required

_EMBEDDED = ("--backends=embedded", "tests", "--ignore=tests/faults")
_PRODUCTION = (
    *("--backends=production", "tests/api", "tests/services", "tests/adapters", "tests/worker", "tests/e2e"),
    "tests/hostile/test_bad_inputs.py",
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
    with tempfile.TemporaryFile() as said:
        faults = subprocess.Popen(_command(*_FAULTS), stdout=said, stderr=subprocess.STDOUT)
        try:
            failed = _run(*_EMBEDDED) or _run(*_PRODUCTION)
        except BaseException:
            faults.terminate()
            raise
        finally:
            failed_in_faults = faults.wait()
            _tell(*_FAULTS)
            said.seek(0)
            sys.stdout.buffer.write(said.read())
            sys.stdout.flush()
    return failed or failed_in_faults


def _run(*arguments: str) -> int:
    _tell(*arguments)
    return subprocess.run(_command(*arguments), check=False).returncode


def _tell(*arguments: str) -> None:
    print(f"pytest {' '.join(arguments)}", flush=True)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *arguments]


if __name__ == "__main__":
    sys.exit(main())
