"""A test that takes `instant` runs at as many of them as `--faults` asks for, the same ones each time."""

import random
from collections.abc import Iterator

import pytest

from tests.e2e.fixtures import install, server, template, undisturbed
from tests.e2e.processes import Process
from tests.history import keeping

__all__ = ["install", "server", "template", "undisturbed"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "instant" in metafunc.fixturenames:
        chosen = random.Random(metafunc.function.__name__)
        instants = [round(chosen.random(), 3) for _ in range(metafunc.config.getoption("--faults") or 1)]
        metafunc.parametrize("instant", instants)


@pytest.fixture(autouse=True)
def promises_are_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """By the servers that many tests share; those of a single test are asked when it ends."""
    yield
    for shared in ("server", "working"):
        if isinstance(process := request.node.funcargs.get(shared), Process):
            keeping.assert_kept(process.installation)
