"""A model of real size through the API: Qwen 2.5 0.5B's geometry, 151k tokens of vocabulary, two cores, 4 GiB."""

import csv
import io
import resource
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import presets
from tests import tiny
from tests.e2e.processes import Installation, Process, create_job, metrics, rows, wait_for, wait_for_end

STEPS, EXAMPLES_A_STEP = 20, 4
# Of the trainer's heap and private mappings, by RLIMIT_DATA: the weights alone take 1.9 GiB in float32.
CAP_BYTES = 4 << 30
SECONDS = 3000

pytestmark = [pytest.mark.long, pytest.mark.timeout(SECONDS + 600)]


def peak_bytes(pid: int) -> int:
    """The most resident memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the process is gone")


def only_trainer(server: Process) -> int:
    (pid,) = wait_for(server.trainers, seconds=60)
    return pid


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="caps and measures by Linux's means")
def test_twenty_steps_of_half_a_billion_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = presets.build_preset("qwen05b", tmp_path / "base", dtype=torch.bfloat16)
    tiny.write_tokenizer(base, family="qwen2")
    settings = {"HONE_TRAINER_THREADS": "2", "HONE_PROGRESS_TIMEOUT_SECONDS": "900"}
    installation = Installation(tmp_path / "data", settings)
    added = installation.hone("models", "add", "qwen", "--source", str(base))
    assert added.returncode == 0, added.stdout + added.stderr
    with installation.serving() as server:
        wait_for(lambda: "is ready" in server.output.read_text(), seconds=120)
        trainer = only_trainer(server)
        resource.prlimit(trainer, resource.RLIMIT_DATA, (CAP_BYTES, CAP_BYTES))
        client = server.client()
        began = time.monotonic()
        method = {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": EXAMPLES_A_STEP}},
        }
        hone = {"learning_rate": 1e-3, "max_sequence_tokens": 128, "adapter": {"rank": 8, "alpha": 16}}
        job = create_job(
            client,
            epochs=1,
            train=rows(STEPS * EXAMPLES_A_STEP),
            model="qwen",
            validation_file=None,
            method=method,
            extra_body={"hone": hone},
        )
        job = wait_for_end(client, job.id, seconds=SECONDS)
        seconds = time.monotonic() - began
        table = list(csv.DictReader(io.StringIO("\n".join(metrics(client, job)))))
        assert server.trainers() == [trainer]  # the one that is capped
        peak = peak_bytes(trainer)
    losses = [float(row["train_loss"]) for row in table]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    assert peak <= CAP_BYTES
    with capsys.disabled():
        sys.stderr.write(f"\n{seconds:.0f} s, peak {peak >> 20} MiB, losses {losses[0]:.3f} to {losses[-1]:.3f}\n")
