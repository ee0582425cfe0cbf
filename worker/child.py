"""What a child process of a worker owes its parent: not to outlive it, and not to take more than it was given."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent_pid: int | None) -> None:
    """Ask Linux for SIGKILL at the parent's death; elsewhere, do nothing.

    `parent_pid` is what the parent says of itself. One that is gone before the request was made sends no signal
    any more, so the child then ends at once. None: whoever is the parent now, as for a process started by hand.
    """
    if sys.platform != "linux":
        return
    expected = os.getppid() if parent_pid is None else parent_pid
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected:
        kill_group()


def bind(limits: Mapping[int, int], *, grace: Mapping[int, int] | None = None) -> None:
    """Set limits (`resource.RLIMIT_*`) for good, never above those that are there. No core dumps: they hold data.

    With a `grace` the hard limit is so much higher: what happens at the soft one can tell why.
    """
    for kind, wanted in {resource.RLIMIT_CORE: 0, **limits}.items():
        _, hard = resource.getrlimit(kind)
        most = wanted + (grace or {}).get(kind, 0)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (min(wanted, most), most))


def kill_group() -> None:
    """End this process and its children at once. Without a group of our own, only this process."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
