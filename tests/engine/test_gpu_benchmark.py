"""The GPU benchmark, whole, on toy models and the CPU: so that it runs at the first try where there is a GPU."""

import json
import subprocess
import sys

import pytest

from benchmarks.gpu import CASES
from tests.engine.trainer_process import REPOSITORY


@pytest.mark.long  # ten processes, and bfloat16 is emulated on most machines without a GPU
@pytest.mark.timeout(1200)
def test_the_whole_script_runs_on_toys() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--geometry", "tiny", "--seconds", "1100"]
    options = ["--shapes", "packed", "--peer-shapes", "packed"]
    done = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert {(one["system"], one["case"]) for one in report["cases"]} == {
        (system, case) for system in ("ours", "TRL") for case in CASES if case != "gate"
    }
    assert report["ratio"] > 0
    assert report["left_out"] == []
    # What only a CUDA device can show is left out by name; all else has passed.
    gate = report["gate"][0]
    assert set(gate["left_out"]) == {"flash_attention_is_used", "out_of_memory_is_survived", "memory_is_predicted"}
    assert len(gate["passed"]) == 7
    # Both systems begin with the same base, and with adapters that change nothing yet.
    first = {one["system"]: one["losses"][0] for one in report["cases"] if one["case"] == "lora-8b"}
    assert first["ours"] == pytest.approx(first["TRL"], rel=0.02)
