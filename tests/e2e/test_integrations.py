"""Trackers beside a real run, whose worker is killed in its middle."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import BASE, Installation, create_job, messages, metrics, wait_for, wait_for_end, wait_for_step
from tests.servers import trackers


def test_each_step_is_told_once_though_the_worker_dies(install: Callable[..., Installation], tmp_path: Path) -> None:
    board = tmp_path / "board"
    installation = install(wandb_offline="true", tensorboard_directory=str(board), cpu_only="true")
    asked = {"checkpoint_interval_steps": 10, "trackers": {"tensorboard": {}}}
    wandb = {"type": "wandb", "wandb": {"project": "weeks"}}
    trainer = Installation(installation.data, installation.settings | {"HONE_CPU_ONLY": "false"}, installation.history)
    with installation.serving() as server:
        client = server.client()
        with trainer.working() as first:
            job = create_job(client, epochs=8, integrations=[wandb], extra_body={"hone": asked})
            wait_for_step(client, job.id, 25)
            wait_for(lambda: list(board.rglob("events.out.*")), seconds=60)
            first.kill()
        with trainer.working() as second:
            job = wait_for_end(client, job.id, seconds=300)
            table = metrics(client, job)
            second.interrupt()  # it lets the trackers come to their end
        shown = client.fine_tuning.jobs.retrieve(job.id).to_dict()
        warned = [message for message in messages(client, job.id) if message.startswith("The integration")]

    assert warned == []
    assert shown["integrations"][0]["wandb"]["run_id"] == job.id  # pyright: ignore
    assert {one["name"]: one["error"] for one in shown["hone"]["trackers"]} == {  # pyright: ignore
        "wandb": None,
        "tensorboard": None,
    }
    (directory,) = board.glob(f"*/{job.id}")
    points = trackers.scalars(directory)["train_loss"]
    rows = [row.split(",") for row in table[1:]]
    assert [step for step, _ in points] == [int(row[0]) for row in rows]
    assert [loss for _, loss in points] == pytest.approx([float(row[1]) for row in rows], abs=1e-5)
    runs = sorted((installation.data / "wandb").rglob("run-*.wandb"))
    assert {path.name for path in runs} == {f"run-{job.id}.wandb"}
    last = max((trackers.offline_run(path.parent) for path in runs), key=lambda run: len(run.history))
    assert (last.project, last.config["base_model"], last.exit_code) == ("weeks", BASE, 0)
    assert last.summary["hone/fine_tuned_model"] == job.fine_tuned_model
    assert sorted(last.history) == list(range(1, 97))
