"""A base model that is added on one machine is trained on by another, which never saw where it came from."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.base_objects import damaged
from tests.e2e.processes import BASE, Installation, create_job, messages, metrics, wait_for, wait_for_end
from tests.servers import hub
from tests.tiny import build_tiny_base

Install = Callable[..., Installation]
FAR = "acme/far"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another base than the installation has."""
    return build_tiny_base(tmp_path_factory.mktemp("base") / "tiny", seed=5)


def add(installation: Installation, model_id: str, source: str) -> None:
    added = installation.hone("models", "add", model_id, "--source", source)
    assert added.returncode == 0, added.stdout + added.stderr


def test_a_base_from_a_directory_that_is_gone_trains_on_another_machine(
    install: Install, pristine: Path, tmp_path: Path
) -> None:
    installation = install()
    source = tmp_path / "source"
    shutil.copytree(pristine, source)
    add(installation, FAR, str(source))
    shutil.rmtree(source)
    with installation.serving("--api-only") as api, installation.elsewhere().working() as far:
        client = api.client()
        checked_without_weights = {"hone": {"adapter": {"target_modules": ["q_proj", "v_proj"]}}}
        job = wait_for_end(client, create_job(client, epochs=1, model=FAR, extra_body=checked_without_weights).id)
        assert job.status == "succeeded", job.error
        assert len(metrics(client, job)) == 13
        held = [path.name for path in (far.installation.data / "bases").glob("*/files/*")]
        assert held.count("tokenizer.json") == 2  # for validation, and for training
        assert held.count("model.safetensors") == 1


def test_a_damaged_base_is_refused_and_other_jobs_go_on(install: Install, pristine: Path, tmp_path: Path) -> None:
    installation = install(lease_seconds="3")
    source = tmp_path / "source"
    shutil.copytree(pristine, source)
    with (source / "generation_config.json").open("a") as file:
        file.write("\n")  # or the other base would share the object that is damaged
    add(installation, FAR, str(source))
    with installation.serving("--api-only") as api, damaged(installation, FAR, "generation_config.json"):
        client = api.client()
        with installation.elsewhere().working():
            waiting = create_job(client, epochs=1, model=FAR)
            other = create_job(client, epochs=1)
            assert wait_for_end(client, other.id).status == "succeeded"
            nobody = f"No worker can get the base model {FAR}; the job waits until one can"
            wait_for(lambda: messages(client, waiting.id)[-1] == nobody, seconds=20)
            assert client.fine_tuning.jobs.retrieve(waiting.id).status == "validating_files"
            table = installation.hone("workers", "list").stdout
            assert f"cannot get {FAR}: generation_config.json is damaged in storage" in table


def environment_of(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode()
    pairs = (item.partition("=") for item in raw.split("\0") if item)
    return {name: value for name, _, value in pairs}


def descendants(pid: int) -> list[tuple[int, str]]:
    """Children of a process, and their commands."""
    found: list[tuple[int, str]] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_bytes().decode().replace("\0", " ")
        except (OSError, ValueError):
            continue
        if parent == pid:
            found.append((int(path.name), command))
    return found


def test_a_gated_base_is_fetched_by_the_control_side_alone(install: Install, pristine: Path, tmp_path: Path) -> None:
    installation = install()
    with hub.running(pristine) as gated:
        told = {"HF_ENDPOINT": gated.url, "HF_TOKEN": hub.TOKEN}
        here = Installation(installation.data, installation.settings | told | {"HF_HOME": str(tmp_path / "hf-here")})
        add(here, FAR, hub.REPOSITORY)
        gated.asked.clear()
        elsewhere = installation.elsewhere()
        there = Installation(elsewhere.data, elsewhere.settings | told | {"HF_HOME": str(tmp_path / "hf-there")})
        with installation.serving("--api-only") as api, there.working() as worker:
            client = api.client()
            job = create_job(client, epochs=1, model=FAR)
            seen: dict[str, dict[str, str]] = {}
            deadline = time.monotonic() + 120
            while client.fine_tuning.jobs.retrieve(job.id).status not in ("succeeded", "failed"):
                assert time.monotonic() < deadline
                for pid, command in descendants(worker.pid):
                    for module in ("worker.trainer", "worker.prepare"):
                        if f"-m {module} " in command and module not in seen:
                            seen[module] = environment_of(pid)
                time.sleep(0.05)
            job = client.fine_tuning.jobs.retrieve(job.id)
            assert job.status == "succeeded", job.error
            assert environment_of(worker.pid)["HF_TOKEN"] == hub.TOKEN
        assert set(seen) == {"worker.trainer", "worker.prepare"}
        for environment in seen.values():
            assert "PATH" in environment
            assert hub.TOKEN not in json.dumps(environment)
        # Small files for validation and again for training, weights once; into the cache, not beside it.
        assert gated.downloads.count("model.safetensors") == 1
        assert not list((tmp_path / "hf-there").rglob("*.safetensors"))
        for place in (*there.data.rglob("*"), *installation.data.rglob("*.log")):
            if place.is_file() and place.stat().st_size < 1 << 20:
                assert hub.TOKEN.encode() not in place.read_bytes(), place


def test_without_its_token_or_with_other_files_a_gated_base_is_refused(
    install: Install, pristine: Path, tmp_path: Path
) -> None:
    installation = install()
    with hub.running(pristine) as gated:
        told = {"HF_ENDPOINT": gated.url, "HF_HOME": str(tmp_path / "hf")}
        stranger = Installation(installation.data, installation.settings | told)
        refused = stranger.hone("models", "add", FAR, "--source", hub.REPOSITORY)
        assert refused.returncode == 1
        assert "restricted" in refused.stdout
        known = Installation(installation.data, stranger.settings | {"HF_TOKEN": hub.TOKEN})
        add(known, FAR, hub.REPOSITORY)
        weights = bytearray(gated.files["model.safetensors"])
        weights[-1] ^= 1
        gated.files["model.safetensors"] = bytes(weights)
        elsewhere = installation.elsewhere()
        there = Installation(
            elsewhere.data, elsewhere.settings | told | {"HF_TOKEN": hub.TOKEN, "HF_HOME": str(tmp_path / "hf-there")}
        )
        with installation.serving("--api-only") as api, there.working():
            client = api.client()
            job = create_job(client, epochs=1, model=FAR)
            wait_for(lambda: "can get the base model" in messages(client, job.id)[-1], seconds=60)
            why = f"model.safetensors from {hub.REPOSITORY} is not what was registered"
            assert why in installation.hone("workers", "list").stdout


def test_without_a_network_the_hugging_face_cache_serves(install: Install, pristine: Path, tmp_path: Path) -> None:
    installation = install()
    told = {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": hub.TOKEN}
    with hub.running(pristine) as gated:
        online = Installation(installation.data, installation.settings | told | {"HF_ENDPOINT": gated.url})
        add(online, FAR, hub.REPOSITORY)
    offline = Installation(installation.data, installation.settings | told | {"HF_HUB_OFFLINE": "1"})
    with offline.serving() as server:
        client = server.client()
        assert wait_for_end(client, create_job(client, epochs=1, model=FAR).id).status == "succeeded"
        (held,) = (installation.data / "bases").glob("*/files/model.safetensors")
        cached = tmp_path / "hf/hub/models--acme--gated/snapshots" / hub.COMMIT / "model.safetensors"
        assert held.samefile(cached)
    assert BASE in installation.hone("models", "list").stdout
