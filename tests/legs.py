"""`make test`: everything on the embedded backends, then what touches a backend again on a production's servers."""

import subprocess
import sys

from tests.servers import required

_EMBEDDED = ("tests", "--ignore=tests/faults")
_PRODUCTION = ("tests/api", "tests/services", "tests/adapters", "tests/worker", "tests/e2e", "tests/faults")


def main() -> int:
    """The exit status of the first leg that fails, or 0."""
    missing = " and ".join(required.missing())
    if missing and required.are_required():
        print(f"Tests must run on a production's servers here, but {missing} is not installed.")
        return 1
    if missing:
        print(f"Only the embedded backends are tested: {missing} is not installed.", flush=True)
        return _pytest("--backends=embedded", "tests")
    return _pytest("--backends=embedded", *_EMBEDDED) or _pytest("--backends=production", *_PRODUCTION)


def _pytest(*arguments: str) -> int:
    print(f"pytest {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
