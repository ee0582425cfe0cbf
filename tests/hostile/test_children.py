"""The processes that chew on what strangers sent: what they have, and what they lack."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.settings import Settings
from tests.e2e.processes import is_alive, wait_for
from worker import workspace
from worker.contract.prepare import ProcessLimits
from worker.prepare import MAX_OPEN_FILES
from worker.preparer import Preparer
from worker.supervisor import Trainer

SECRETS = {
    "HONE_API_KEY": "a-secret-of-hone-1",
    "HONE_DATABASE_URL": "postgresql://u:a-secret-of-the-database@h/d",
    "HONE_S3_SECRET_ACCESS_KEY": "a-secret-of-s3",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-aws",
    "HF_TOKEN": "hf_a_secret_of_the_hub",
    "WANDB_API_KEY": "a-secret-of-wandb",
    "LD_PRELOAD_SECRET": "a-secret-of-anyone",
}
_GIB = 1 << 30


@pytest.fixture
def secrets_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def trainer(tmp_path: Path, secrets_around: None) -> AsyncIterator[Trainer]:
    started = await Trainer.start(log=tmp_path / "log", threads=1, device=None, memory_bytes=8 * _GIB)
    await asyncio.to_thread(_until_bound, started.pid)
    yield started
    await started.close()


def _until_bound(pid: int) -> None:
    """Its interpreter takes a moment to come to its first line."""
    wait_for(lambda: limits(pid)["Max data size"] != "unlimited", seconds=60)


def limits(pid: int) -> dict[str, str]:
    """Soft limits by their names."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[0] for line in lines}


def environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return {name: value for name, _, value in (entry.partition("=") for entry in entries) if name}


def assert_holds_no_secret(pid: int) -> None:
    told = json.dumps(environment(pid)) + Path(f"/proc/{pid}/cmdline").read_text()
    assert "PATH" in told
    for name, value in SECRETS.items():
        assert name not in told
        assert value not in told


def links(pid: int) -> dict[str, str]:
    """What its descriptors lead to."""
    return {entry.name: str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}


async def test_the_trainer(trainer: Trainer) -> None:
    pid = trainer.pid
    assert_holds_no_secret(pid)
    assert environment(pid)["HF_HUB_OFFLINE"] == "1"
    assert os.getsid(pid) == os.getpgid(pid) == pid != os.getsid(0)
    bound = limits(pid)
    assert bound["Max core file size"] == "0"
    assert int(bound["Max data size"]) == 8 * _GIB
    assert int(bound["Max file size"]) == 64 * _GIB
    assert int(bound["Max open files"]) <= 4096
    opened = links(pid)
    assert opened["0"] == "/dev/null"
    assert not [path for path in opened.values() if path.startswith("socket:") or path.endswith(".db")]
    await trainer.close()
    assert not is_alive(pid)


async def test_the_child_that_waits_for_files(tmp_path: Path, secrets_around: None) -> None:
    preparer = Preparer(tmp_path / "prepare.log")
    await preparer.be_ready()
    try:
        assert preparer._waiting is not None
        pid = preparer._waiting.pid
        assert_holds_no_secret(pid)
        assert os.getsid(pid) == os.getpgid(pid) == pid != os.getsid(0)
    finally:
        await preparer.close()


def test_the_child_that_checks_files() -> None:
    """Once it has its request it has nothing on descriptor 0, and all of its limits."""
    code = (
        "import os, resource; from worker import prepare; from worker.contract.prepare import ProcessLimits;"
        "assert prepare._read_all(0) == b'request';"
        f"prepare.limit_process(ProcessLimits(memory_bytes={2 * _GIB}, cpu_seconds=9, file_bytes={_GIB}));"
        "print(os.readlink('/proc/self/fd/0'), resource.getrlimit(resource.RLIMIT_NOFILE)[0], oct(os.umask(0)))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"request", capture_output=True, check=True, timeout=60)
    assert done.stdout.decode().split() == ["/dev/null", str(MAX_OPEN_FILES), "0o77"]
    assert ProcessLimits().memory_bytes <= 4 * _GIB


def test_work_directories_are_private(tmp_path: Path) -> None:
    directory = workspace.of_worker(Settings(data_directory=tmp_path), "worker-1")
    assert directory.stat().st_mode & 0o777 == 0o700
