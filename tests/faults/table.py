"""What a run of the faults came to, fault by fault, as a table for docs/reliability.md."""

import re
import statistics
from collections import defaultdict
from dataclasses import dataclass, field

import pytest

RECOVERY = "recovery_seconds"
_FAULT = re.compile(r"\btest_f(\d+)_")


def is_fault(test: str) -> bool:
    """Whether a test's name begins with a fault's number."""
    return _FAULT.search(test) is not None


@dataclass
class Fault:
    """`tried` and `held` are the tests that struck and, of them, those that passed with all promises kept."""

    tried: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    recoveries: list[float] = field(default_factory=list)

    @property
    def held(self) -> int:
        return len(self.tried - self.failed)


class Table:
    """Takes the reports of tests whose names begin with a fault's number."""

    def __init__(self) -> None:
        self._faults: dict[int, Fault] = defaultdict(Fault)

    def take(self, report: pytest.TestReport) -> None:
        match = _FAULT.search(report.nodeid)
        if match is None or report.skipped:
            return
        fault = self._faults[int(match[1])]
        if report.when == "call" or report.failed:
            fault.tried.add(report.nodeid)
        if report.failed:  # also afterwards, where the promises are looked at
            fault.failed.add(report.nodeid)
        if report.when == "call":
            fault.recoveries += [float(str(value)) for name, value in report.user_properties if name == RECOVERY]

    def lines(self) -> list[str]:
        """In Markdown; empty where no fault was struck."""
        if not any(fault.tried for fault in self._faults.values()):
            return []
        found = ["| fault | tried | held | recovery, median | recovery, longest |", "|---|---:|---:|---:|---:|"]
        for number, fault in sorted(self._faults.items()):
            times = fault.recoveries
            recovery = f"{statistics.median(times):.1f} s | {max(times):.1f} s" if times else "- | -"
            found.append(f"| F{number} | {len(fault.tried)} | {fault.held} | {recovery} |")
        return found
