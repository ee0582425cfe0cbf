"""A worker's lock tells whether it lives, and nothing is said of strangers."""

import subprocess
import sys
from pathlib import Path

from worker.presence import Presence

_HOLD = """
import sys, time
from pathlib import Path
from worker.presence import Presence
presence = Presence(Path(sys.argv[1])); presence.announce(); print(presence.worker_id, flush=True); time.sleep(60)
"""


def test_a_killed_process_is_known_dead_and_a_living_one_is_not(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        other = child.stdout.readline().strip()
        me = Presence(tmp_path)
        me.announce()
        assert me.is_running(other)
        assert me.known_dead([other, me.worker_id, "worker-elsewhere"]) == []
        child.kill()
        child.wait()
        assert me.known_dead([other, me.worker_id, "worker-elsewhere"]) == [other]
        assert not me.is_running(other)
        me.forget(other)
        assert me.known_dead([other]) == []
        me.close()
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def test_a_worker_that_closed_leaves_no_file(tmp_path: Path) -> None:
    presence = Presence(tmp_path)
    presence.announce()
    presence.close()
    assert list(tmp_path.iterdir()) == []
