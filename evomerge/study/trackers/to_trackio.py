"""trackio: a run in the project `evomerge` of the local database (`TRACKIO_DIR`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.study.trackers.tracker import Tracker, metric_name

PROJECT = "evomerge"


class ToTrackio(Tracker):
    name = "trackio"

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        import trackio

        going_on = self.record is not None
        self.record = run.name if self.record is None else self.record
        self._run: Any = trackio.init(
            project=PROJECT,
            name=self.record,
            config=dict(config),
            resume="allow" if going_on else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def trial(self, number: int, numbers: Mapping[str, float]) -> None:
        self._run.log({metric_name(key): value for key, value in numbers.items()}, step=number)

    def finish(self, summary: Mapping[str, Any]) -> None:
        import trackio

        self._run.log({f"final.{key}": value for key, value in summary.items() if value is not None})
        self._run.finish()
        # Else it would be finished once more, with words on stdout, when the program ends.
        if trackio.context_vars.current_run.get() is self._run:
            trackio.context_vars.current_run.set(None)
