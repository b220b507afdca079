"""Weights & Biases: a run in the project `WANDB_PROJECT`, else `evomerge`; offline unless `WANDB_MODE` says otherwise.

`wandb sync` uploads an offline record. A resumed search writes another one of the same id, and both make one run there.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.study.trackers.tracker import Tracker, metric_name

PROJECT = "evomerge"


class ToWandb(Tracker):
    name = "wandb"

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        self.record = self.record or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            id=self.record,
            resume=None if mode == "offline" else "allow",
            config=dict(config),
            mode=mode,
            reinit="create_new",  # a run that the user's own code has open stays open
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        # Trials may end in another order than that of their numbers, and its own steps must ascend.
        self._run.define_metric("trial")
        self._run.define_metric("*", step_metric="trial")

    def trial(self, number: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"trial": number, **{metric_name(key): value for key, value in numbers.items()}})

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update({f"final.{key}": value for key, value in summary.items()})
        self._run.finish(exit_code=0 if summary["state"] == "finished" else 1)
