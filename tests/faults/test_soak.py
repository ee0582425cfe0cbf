"""The soak's short form: everything dies now and then for a minute, and nothing is lost or done twice."""

import json
import subprocess
import sys

import pytest

from tests.servers import required


@pytest.mark.timeout(900)
def test_a_minute_of_the_soak() -> None:
    for package in required.missing():
        required.skip_without(package)
    command = [sys.executable, "-m", "benchmarks.soak", "--seconds", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["lost"], figures["doubled"], figures["with_other_figures"], figures["broken_promises"]) == (0,) * 4
    assert figures["jobs"] >= 12
    assert figures["kills"] > 0
    assert figures["restarts"] == {"postgres": 2, "redis": 2}
