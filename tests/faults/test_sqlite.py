"""Another process holds SQLite's write lock: requests wait their turn, or are told to come again."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.faults import stand

_HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA busy_timeout=10000")
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


@contextmanager
def write_lock_held(database: Path, *, seconds: float) -> Iterator[None]:
    """By a process of its own, from the beginning of the block; the block ends when the lock does."""
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, database, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        yield
        assert holder.wait(30) == 0


def test_f17_writers_wait_for_a_lock_of_two_seconds(tmp_path: Path, instant: float) -> None:
    with stand.on_sqlite(tmp_path / "data") as made:
        with made.busy(made.create_job, clients=4):
            time.sleep(0.2 * instant)
            with write_lock_held(tmp_path / "data" / "hone.db", seconds=2):
                pass
            time.sleep(0.2)
        made.check_answers()
        made.check_jobs()


def test_f17_who_waited_too_long_is_told_and_readers_are_not_kept(tmp_path: Path) -> None:
    with stand.on_sqlite(tmp_path / "data") as made:
        job = made.create_job().body
        with made.busy(made.create_job, clients=4):
            with write_lock_held(tmp_path / "data" / "hone.db", seconds=7):
                time.sleep(0.5)
                read = made.request("GET", f"/v1/fine_tuning/jobs/{job['id']}")
                assert read.status == 200
                assert read.seconds < 2
            time.sleep(0.2)
        assert made.check_answers()[503] > 0
        made.check_jobs()
    with closing(sqlite3.connect(tmp_path / "data" / "hone.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
