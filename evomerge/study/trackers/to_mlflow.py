"""MLflow: a run in the experiment `evomerge`, where `MLFLOW_TRACKING_URI` says, else in the current folder."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.study.trackers.tracker import Tracker, flat, metric_name

EXPERIMENT = "evomerge"
_LONGEST = 500
"""Characters of a parameter's value that every version takes."""
_TOGETHER = 100
"""Parameters of one request."""


class ToMlflow(Tracker):
    name = "mlflow"

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if self.record is None:
            known = self._client.get_experiment_by_name(EXPERIMENT)
            experiment = known.experiment_id if known is not None else self._client.create_experiment(EXPERIMENT)
            self.record = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
            params = [Param(metric_name(key), str(value)[:_LONGEST]) for key, value in flat(config)]
            for at in range(0, len(params), _TOGETHER):
                self._client.log_batch(self.record, params=params[at : at + _TOGETHER])
        else:
            self._client.update_run(self.record, status="RUNNING")

    def trial(self, number: int, numbers: Mapping[str, float]) -> None:
        self._log(numbers, number)

    def finish(self, summary: Mapping[str, Any]) -> None:
        numbers = {key: value for key, value in summary.items() if isinstance(value, float | int)}
        self._log({f"final.{key}": float(value) for key, value in numbers.items()}, 0)
        self._client.set_tag(self.record, "state", summary["state"])
        status = {"finished": "FINISHED", "interrupted": "KILLED"}.get(summary["state"], "FAILED")
        self._client.set_terminated(self.record, status)

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        known = {metric_name(key): value for key, value in numbers.items() if not math.isnan(value)}
        self._client.log_batch(self.record, metrics=[Metric(key, value, now, step) for key, value in known.items()])
