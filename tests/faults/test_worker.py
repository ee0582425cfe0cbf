"""A worker loses its database in the middle of a job: the job ends as if nothing had happened."""

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from app.db import migrations
from tests.backends import Site
from tests.e2e.processes import BASE, Installation, Process, create_job, messages, metrics, wait_for_end, wait_for_step
from tests.faults import proxy
from tests.faults.proxy import Proxy
from tests.servers.postgres import Postgres
from tests.tiny import build_tiny_base

EPOCHS = 6  # 72 steps


@pytest.fixture(scope="module")
def way(postgres_server: Postgres) -> Iterator[Proxy]:
    with proxy.running(postgres_server.port) as between:
        yield between


@pytest.fixture(scope="module")
def server(postgres_server: Postgres, way: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An API and a worker in one process, on a database behind the proxy."""
    directory = tmp_path_factory.mktemp("worker")
    postgres_server.create("worker")
    migrations.upgrade(postgres_server.url("worker"))
    places = {"database_url": postgres_server.url("worker", port=way.port), "database_timeout_seconds": "3"}
    site = Site(directory / "data", places)
    site.data.mkdir()
    installation = Installation.at(site, lease_seconds="30")
    added = installation.hone("models", "add", BASE, "--source", str(build_tiny_base(directory / "base")))
    assert added.returncode == 0, added.stdout
    with installation.serving() as process:
        yield process


@pytest.fixture(scope="module")
def undisturbed(server: Process) -> list[str]:
    client = server.client()
    return metrics(client, wait_for_end(client, create_job(client, epochs=EPOCHS).id))


@pytest.mark.parametrize("fault", ["restart", "black hole", "resets"])
def test_a_run_goes_on_while_its_database_is_away(
    server: Process, undisturbed: list[str], postgres_server: Postgres, way: Proxy, fault: str, instant: float
) -> None:
    client = server.client()
    job = create_job(client, epochs=EPOCHS)
    wait_for_step(client, job.id, 1 + int(30 * instant))
    if fault == "restart":
        postgres_server.stop()
        time.sleep(1.5)
        postgres_server.start()
    elif fault == "black hole":
        way.black_hole()
        time.sleep(5)
        way.heal()
    else:
        for _ in range(5):
            way.reset()
            time.sleep(0.2)

    patient = client.with_options(max_retries=10)
    assert metrics(patient, wait_for_end(patient, job.id)) == undisturbed
    told = messages(patient, job.id)
    steps = Counter(message.split(":")[0] for message in told if message.startswith("Step "))
    assert len(steps) == len(undisturbed) - 1
    assert set(steps.values()) == {1}
    assert told.count("The job has successfully completed") == 1
    assert "Fine-tuning job resumed" not in told  # the run went on, and was not begun anew
