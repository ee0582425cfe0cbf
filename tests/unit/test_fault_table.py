"""The table of faults counts what was struck, what held, and how long it took."""

import pytest

from tests.faults.table import RECOVERY, Table


def report(
    name: str, *, when: str = "call", outcome: str = "passed", recovery: float | None = None
) -> pytest.TestReport:
    properties = [] if recovery is None else [(RECOVERY, recovery)]
    return pytest.TestReport(
        f"tests/faults/test_some.py::{name}",
        ("", None, ""),
        {},
        outcome,  # pyright: ignore[reportArgumentType]
        None,
        when,  # pyright: ignore[reportArgumentType]
        user_properties=properties,
    )


def test_each_fault_has_its_row() -> None:
    table = Table()
    for number, seconds in enumerate((1.0, 2.0, 9.0)):
        table.take(report(f"test_f1_killed[{number}]", recovery=seconds))
    table.take(report("test_f1_killed[3]", outcome="failed"))
    table.take(report("test_f13_restart", when="call"))
    table.take(report("test_f13_restart", when="teardown", outcome="failed"))  # a promise was broken
    table.take(report("test_f2_upload", outcome="skipped"))
    table.take(report("test_f3_stopped", when="setup", outcome="failed"))
    table.take(report("test_a_proxy_that_passes"))
    assert table.lines()[2:] == [
        "| F1 | 4 | 3 | 2.0 s | 9.0 s |",
        "| F3 | 1 | 0 | - | - |",
        "| F13 | 1 | 0 | - | - |",
    ]


def test_nothing_struck_is_no_table() -> None:
    assert Table().lines() == []
