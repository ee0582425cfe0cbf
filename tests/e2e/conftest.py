import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import BASE, Installation, Process, create_job, metrics, wait_for_end
from tests.tiny import build_tiny_base

EPOCHS = 8  # 96 steps: long enough to be struck in the middle, short enough to be waited for


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated data directory with one base model, which tests copy."""
    installation = Installation(tmp_path_factory.mktemp("template") / "data")
    base = build_tiny_base(installation.data.parent / "base")
    added = installation.hone("models", "add", BASE, "--source", str(base))
    assert added.returncode == 0, added.stdout + added.stderr
    return installation.data


@pytest.fixture
def install(template: Path, tmp_path: Path) -> Callable[..., Installation]:
    """Makes an installation of the test's own; keyword arguments are settings."""

    def make(**settings: str) -> Installation:
        data = tmp_path / "data"
        shutil.copytree(template, data)
        return Installation(data, {f"HONE_{name.upper()}": value for name, value in settings.items()})

    return make


@pytest.fixture(scope="session")
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One server for the tests that do it no harm."""
    data = tmp_path_factory.mktemp("server") / "data"
    shutil.copytree(template, data)
    with Installation(data).serving() as process:
        yield process


@pytest.fixture(scope="session")
def undisturbed(server: Process) -> list[str]:
    """The step metrics of a job that nothing happened to: what every disturbed one must end with."""
    client = server.client()
    job = create_job(client, epochs=EPOCHS)
    return metrics(client, wait_for_end(client, job.id))
