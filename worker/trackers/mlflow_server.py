"""MLflow: one run for each job, found again by a tag that holds the job's id."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from worker.contract.tracking import Close, Open, StepFigures

_TAG = "hone.job_id"
_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED", "interrupted": "SCHEDULED"}
_MOST_PARAMETERS = 100  # in one request
_MOST_METRICS = 1000  # likewise
_MOST_CHARACTERS = 500


class MlflowRun:
    def __init__(self, command: Open) -> None:
        os.environ |= {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        }
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.tracking import MlflowClient

        self._metric, options = Metric, command.options
        self._client = MlflowClient(tracking_uri=command.access["tracking_uri"])
        experiment = self._experiment(options.get("experiment") or "hone")
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{command.run}'", max_results=1)
        if found:
            self.run_id: str = found[0].info.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            history = self._client.get_metric_history(self.run_id, "train_loss")
            self.last_step = max((metric.step for metric in history), default=0)
        else:
            tags = {**(options.get("tags") or {}), _TAG: command.run}
            made = self._client.create_run(experiment, tags=tags, run_name=options.get("run_name") or command.job_id)
            self.run_id, self.last_step = made.info.run_id, 0
        flat = [Param(name, value[:_MOST_CHARACTERS]) for name, value in _flat(command.config).items()]
        tags = [RunTag("hone.base_model", command.base_model)]
        self._client.log_batch(self.run_id, params=flat[:_MOST_PARAMETERS], tags=tags)
        self.url: str | None = None

    def log(self, steps: Sequence[StepFigures]) -> None:
        """Few requests: a command has to be answered in time, also by a server that is slow."""
        batch: list[Any] = []
        for one in steps:
            if len(batch) + len(one.figures) > _MOST_METRICS:  # steps stay whole: `last_step` goes by one figure
                self._client.log_batch(self.run_id, metrics=batch)
                batch = []
            at = int(one.at * 1000)
            batch += [self._metric(name, value, at, one.step) for name, value in one.figures.items()]
        if batch:
            self._client.log_batch(self.run_id, metrics=batch)

    def close(self, command: Close) -> None:
        for name, value in command.summary.items():
            self._client.set_tag(self.run_id, f"hone.{name}", "" if value is None else str(value))
        if command.status == "interrupted":
            self._client.update_run(self.run_id, status=_STATUS["interrupted"])
        else:
            self._client.set_terminated(self.run_id, status=_STATUS[command.status])

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:  # another job has made it at the same moment
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """MLflow's parameters are texts without levels."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = str(value)
    return found
