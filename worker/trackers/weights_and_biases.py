"""Weights & Biases: one run for each job, named by the job's id, so that a resumed job goes on with it."""

import os
from collections.abc import Sequence
from typing import Any

from worker.contract.tracking import Close, Open, StepFigures

_MOST_TAG_CHARACTERS = 64  # longer ones are refused by W&B


class WandbRun:
    """What is logged goes to wandb's own process, which sends it; only the start and the end wait for the network."""

    def __init__(self, command: Open) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # wandb's own reports of its crashes, which go to its maker
        import wandb

        access, options = command.access, command.options
        settings: dict[str, Any] = {
            "api_key": access.get("api_key"),
            "base_url": access.get("base_url"),
            "root_dir": command.work_directory,
            "console": "off",
            "silent": True,
            # What wandb would collect of this machine is no tenant's business.
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
            "disable_job_creation": True,
            "x_disable_stats": True,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
            "host": "hone",
        }
        tags = [*(options.get("tags") or ()), "hone/finetune", f"hone/{command.base_model}", f"hone/{command.job_id}"]
        self._run = wandb.init(
            project=options["project"],
            entity=options.get("entity"),
            name=options.get("name") or command.job_id,
            id=command.run,
            resume="allow",
            tags=list(dict.fromkeys(tag[:_MOST_TAG_CHARACTERS] for tag in tags if tag)),
            config=command.config,
            mode="offline" if access.get("offline") else "online",
            dir=access.get("directory") or command.work_directory,
            settings=wandb.Settings(**{name: value for name, value in settings.items() if value is not None}),
        )
        self.run_id: str = self._run.id
        self.url: str | None = self._run.url
        self.last_step = max(0, self._run.starting_step - 1)

    def log(self, steps: Sequence[StepFigures]) -> None:
        for one in steps:
            self._run.log(one.figures, step=one.step)

    def close(self, command: Close) -> None:
        self._run.summary.update({f"hone/{name}": value for name, value in command.summary.items()})
        if command.status == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if command.status == "succeeded" else 1)
