"""Real children that wait for a request, carry it out, and end."""

import datetime
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.processes import is_alive
from tests.unit.chat_bases import write_base
from worker.contract.errors import TrainError
from worker.contract.prepare import PrepareRequest, ProcessLimits
from worker.preparer import Preparer

ROW = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]}


@pytest.fixture
async def preparer(tmp_path: Path) -> AsyncIterator[Preparer]:
    one = Preparer(tmp_path / "prepare.log")
    yield one
    await one.close()


def request(directory: Path, name: str, *, rows: int, **changes: object) -> PrepareRequest:
    base = write_base(directory / f"{name}-base", "chatml")
    (directory / f"{name}.jsonl").write_text(rows * (json.dumps(ROW) + "\n"))
    (directory / name).mkdir()
    values = {
        "base_directory": str(base),
        "training_file": str(directory / f"{name}.jsonl"),
        "output_directory": str(directory / name),
        "max_sequence_tokens": 128,
        "rendering_date": datetime.date(2026, 1, 2),
    }
    return PrepareRequest.model_validate(values | changes)


def waiting(preparer: Preparer) -> int:
    assert preparer._waiting is not None
    return preparer._waiting.pid


async def test_each_request_has_a_child_of_its_own_that_was_waiting(preparer: Preparer, tmp_path: Path) -> None:
    children = []
    for name, rows in (("first", 12), ("second", 15)):
        await preparer.be_ready()
        children.append(waiting(preparer))
        report = await preparer.prepare(request(tmp_path, name, rows=rows), 60)
        assert report.training.num_examples == rows
    assert len(set(children)) == 2
    assert not any(is_alive(pid) for pid in children)


async def test_a_waiting_child_that_was_killed_is_replaced(preparer: Preparer, tmp_path: Path) -> None:
    await preparer.be_ready()
    assert preparer._waiting is not None
    os.kill(preparer._waiting.pid, signal.SIGKILL)
    await preparer._waiting.wait()
    assert (await preparer.prepare(request(tmp_path, "data", rows=10), 60)).error is None


async def test_a_child_is_ended_at_its_deadline_and_with_its_preparer(preparer: Preparer, tmp_path: Path) -> None:
    await preparer.be_ready()
    late = waiting(preparer)
    with pytest.raises(TrainError, match=r"within 0\.001 seconds"):
        await preparer.prepare(request(tmp_path, "data", rows=10), 0.001)
    assert not is_alive(late)
    await preparer.be_ready()
    unused = waiting(preparer)
    await preparer.close()
    assert not is_alive(unused)


async def test_a_child_that_dies_of_its_limits_leaves_an_error_for_the_job(preparer: Preparer, tmp_path: Path) -> None:
    base = write_base(tmp_path / "bomb", "chatml")
    (base / "chat_template.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    given = request(tmp_path, "data", rows=10, base_directory=str(base), process=ProcessLimits(cpu_seconds=2))
    with pytest.raises(TrainError, match="limits of time and memory") as caught:
        await preparer.prepare(given, 120)
    assert caught.value.code == "invalid_training_file"
