"""All that a hostile client has, on a real server and worker: each refused with its reason, while others poll."""

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks import hostile_polls
from tests.backends import Site


def test_each_attack_is_refused_while_others_are_served(
    site: Site, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    measured = hostile_polls.measure(site, tmp_path / "bases", seconds=1)
    attacks = measured.pop("attacks")
    record_property("measured", json.dumps(measured))
    assert {name: told["other"] for name, told in attacks.items() if told["other"]} == {}
    assert all(told["refused"] >= 1 for told in attacks.values())
    assert measured["failed_polls"] == 0
    assert measured["polls_attacked"] > 10
