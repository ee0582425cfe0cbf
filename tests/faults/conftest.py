"""A test that takes `instant` runs at as many of them as `--faults` asks for, the same ones each time."""

import random

import pytest

from tests.e2e.fixtures import install, server, template, undisturbed

__all__ = ["install", "server", "template", "undisturbed"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "instant" in metafunc.fixturenames:
        chosen = random.Random(metafunc.function.__name__)
        instants = [round(chosen.random(), 3) for _ in range(metafunc.config.getoption("--faults") or 1)]
        metafunc.parametrize("instant", instants)
