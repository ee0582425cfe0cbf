"""Private work directories: one for each claim of a job, below one for each worker."""

import shutil
from pathlib import Path

from app.services.leases import Lease
from app.settings import Settings
from worker.presence import Presence


def of_worker(settings: Settings, worker_id: str) -> Path:
    """Where a worker keeps what only it needs; removed when it ends."""
    directory = settings.data / "work" / worker_id
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def of_lease(settings: Settings, lease: Lease) -> Path:
    """Where the holder of a lease works. Made by the holder, with access for nobody else, and wiped at the end."""
    worker_id, _, _ = lease.owner.partition("/")
    return of_worker(settings, worker_id) / f"{lease.job_id}.{lease.fence}"


def remove_leftovers(settings: Settings, presence: Presence) -> None:
    """Wipe what workers left that died on this machine."""
    root = settings.data / "work"
    for directory in root.iterdir() if root.is_dir() else ():
        if not presence.is_running(directory.name):
            shutil.rmtree(directory, ignore_errors=True)
