"""An installation with one base model, a server on it, and how a job goes to which nothing happens."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.backends import Backends, Site
from tests.e2e.processes import BASE, Installation, Process, create_job, metrics, wait_for_end
from tests.history import keeping
from tests.tiny import build_tiny_base

EPOCHS = 8  # 96 steps: long enough to be struck in the middle, short enough to be waited for


@pytest.fixture(scope="session")
def template(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """An installation with one base model, which tests copy; the model lies beside its data directory."""
    made = backends.new(tmp_path_factory.mktemp("template") / "data")
    base = build_tiny_base(made.data.parent / "base")
    added = Installation.at(made).hone("models", "add", BASE, "--source", str(base))
    assert added.returncode == 0, added.stdout + added.stderr
    return made


@pytest.fixture
def install(backends: Backends, template: Site, tmp_path: Path) -> Iterator[Callable[..., Installation]]:
    """Makes an installation of the test's own; keyword arguments are settings. In the end it has kept its promises."""
    made: list[tuple[Site, Installation]] = []

    def make(**settings: str) -> Installation:
        site = backends.copy(template, tmp_path / "data")
        made.append((site, Installation.at(site, **settings)))
        return made[-1][1]

    yield make
    for site, installation in made:
        keeping.assert_kept(installation)
        backends.discard(site)


@pytest.fixture(scope="session")
def server(backends: Backends, template: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One server for the tests that do it no harm."""
    made = backends.copy(template, tmp_path_factory.mktemp("server") / "data")
    with Installation.at(made).serving() as process:
        yield process


@pytest.fixture(scope="session")
def undisturbed(server: Process) -> list[str]:
    """The step metrics of a job that nothing happened to: what every disturbed one must end with."""
    client = server.client()
    job = create_job(client, epochs=EPOCHS)
    return metrics(client, wait_for_end(client, job.id))
