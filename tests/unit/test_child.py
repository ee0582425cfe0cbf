"""Real parents that die: before their child looks, and after."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to be killed with its parent")

_CHILD = "from worker.child import die_with_parent; die_with_parent({parent}); print('ready', flush=True); input()"


def gone() -> int:
    """The pid of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@pytest.mark.parametrize("own_group", [True, False])
def test_a_child_whose_parent_is_gone_ends_at_once(own_group: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(parent=gone())],
        capture_output=True,
        timeout=60,
        start_new_session=own_group,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


@pytest.mark.parametrize("parent", ["None", "os.getppid()"])
def test_a_child_ends_with_its_parent(parent: str) -> None:
    code = f"import os; {_CHILD.format(parent=parent)}"
    # The child shares its parent's pipes, so that only the end of both ends its output.
    middle = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert middle.stdout is not None
    assert middle.stdout.readline() == b"ready\n"
    os.kill(middle.pid, signal.SIGKILL)
    assert middle.stdout.read() == b""
    middle.wait()
    assert middle.stdin is not None
    middle.stdin.close()
    middle.stdout.close()
