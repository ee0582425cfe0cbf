"""Which servers the tests need, and what it means when one is not installed."""

import os
import shutil

import pytest

from tests.servers import postgres, redis

_REQUIRE = "HONE_TEST_REQUIRE_BACKENDS"


def missing() -> list[str]:
    """The servers that this machine lacks, by the names of Debian's packages."""
    found = {"postgresql": postgres.binaries() is not None, "redis-server": redis.program() is not None}
    return [name for name, is_there in found.items() if not is_there]


def are_required() -> bool:
    return os.environ.get(_REQUIRE) == "1"


def skip_without(package: str) -> None:
    """Skips the test where the server, or bubblewrap, is not installed, or fails it where all must be."""
    if package in missing() or (package == "bubblewrap" and shutil.which("bwrap") is None):
        (pytest.fail if are_required() else pytest.skip)(f"{package} is not installed")
