"""All that a hostile client has, on a real server and worker: each refused with its reason, while others poll."""

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks import hostile_attacks, hostile_polls
from tests.backends import Site

# `make hostile` has them too; `test_templates` has those that are refused at once.
IN_CI = ("cpu", "memory", "globals")
LEFT_OUT = ("line feeds of 64 MiB", *(f"template {name}" for name in hostile_attacks.TEMPLATES if name not in IN_CI))


def test_each_attack_is_refused_while_others_are_served(
    site: Site, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    measured = hostile_polls.measure(site, tmp_path / "bases", seconds=0, left_out=LEFT_OUT)
    attacks = measured.pop("attacks")
    record_property("measured", json.dumps(measured))
    assert {name: told["other"] for name, told in attacks.items() if told["other"]} == {}
    assert all(told["refused"] >= 1 for told in attacks.values())
    assert measured["failed_polls"] == 0
    assert measured["polls_attacked"] > 10
