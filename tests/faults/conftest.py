"""A test that takes `instant` runs at as many of them as `--faults` asks for, the same ones each time.

Of a fault whose test finds its instant by itself, a tenth as many are struck: what differs is only the machine.
"""

import random
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.e2e.fixtures import install, server, template, undisturbed
from tests.e2e.processes import Process
from tests.faults.table import RECOVERY, Table, is_fault
from tests.history import keeping

__all__ = ["install", "server", "template", "undisturbed"]

_table = Table()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _table.take(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _table.lines():
        terminalreporter.write_line(line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    times = metafunc.config.getoption("--faults") or 1
    if "instant" in metafunc.fixturenames:
        chosen = random.Random(metafunc.function.__name__)
        metafunc.parametrize("instant", [round(chosen.random(), 3) for _ in range(times)])
    elif times >= 10 and is_fault(metafunc.function.__name__):
        metafunc.fixturenames.append("strike")
        metafunc.parametrize("strike", range(times // 10))


@pytest.fixture
def recovered(record_property: Callable[[str, object], None]) -> Callable[[float], None]:
    """To be told how many seconds after a fault its job, or the service, went on."""
    return partial(record_property, RECOVERY)


@pytest.fixture(autouse=True)
def promises_are_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """By the servers that many tests share; those of a single test are asked when it ends."""
    yield
    for shared in ("server", "working"):
        if isinstance(process := request.node.funcargs.get(shared), Process):
            keeping.assert_kept(process.installation)
