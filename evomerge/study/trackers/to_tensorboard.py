"""TensorBoard: event files in the run's folder, in `tensorboard/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.escape import code_block
from evomerge.study.trackers.tracker import Tracker, metric_name


class ToTensorBoard(Tracker):
    name = "tensorboard"

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"))
        if self.record is None:
            self._text("config", config)
        self.record = "tensorboard"

    def trial(self, number: int, numbers: Mapping[str, float]) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(metric_name(key), value, number)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._text("summary", summary)
        self._writer.close()

    def _text(self, name: str, data: Mapping[str, Any]) -> None:
        self._writer.add_text(name, code_block(json.dumps(data, indent=2, default=str), "json"))
