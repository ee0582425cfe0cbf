"""TensorBoard: event files below `<directory>/<project id>/<job id>`, written whole at each start.

Names of the path are ids of ours and nothing that a client chose.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from worker.contract.tracking import Close, Open, StepFigures


class TensorboardRun:
    def __init__(self, command: Open) -> None:
        from tensorboardX import SummaryWriter

        directory = Path(command.access["directory"]) / command.project_id / command.run
        directory.mkdir(parents=True, exist_ok=True)
        for earlier in directory.glob("events.out.tfevents.*"):  # of this job before it was interrupted
            earlier.unlink()
        self._writer = SummaryWriter(str(directory), flush_secs=5)
        self._writer.add_text("config", f"```json\n{json.dumps(command.config, indent=1)}\n```", 0)
        self.run_id = command.run
        self.url: str | None = None
        self.last_step = 0

    def log(self, steps: Sequence[StepFigures]) -> None:
        for one in steps:
            for name, value in one.figures.items():
                self._writer.add_scalar(name, value, one.step, walltime=one.at, display_name=name)

    def close(self, command: Close) -> None:
        text = "\n".join(f"- {name}: {value}" for name, value in command.summary.items())
        self._writer.add_text("summary", text, 0)
        self._writer.close()
