"""No result passes once a file has changed, whatever else went wrong by that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from evomerge.checkpoints.identity import identity
from evomerge.errors import InputError, StoppedError, TrialError
from evomerge.evaluator.watched import WatchedExecutor


def fails() -> Any:
    raise InputError("no worker is left")


@pytest.mark.parametrize("answer", [lambda: 0.5, lambda: TrialError("it has become shorter"), fails])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_changed_file_is_what_is_said(tmp_path: Path, answer: Callable[[], Any], when: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("one")
    checkpoint = SimpleNamespace(seen={file: identity(file)}, files=lambda: [file])
    asked: list[str] = []

    def result() -> Any:
        asked.append("asked")
        if when == "meanwhile":
            file.write_text("other")
        return "job", answer()

    executor = WatchedExecutor(cast(Any, SimpleNamespace(result=result)), [cast(Any, checkpoint)], "copy it back")
    if when == "before":
        file.write_text("other")
    with pytest.raises(StoppedError, match=r"model.safetensors has changed .*; copy it back"):
        executor.result()
    assert asked == ["asked"]


def test_other_errors_stay_and_results_pass(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no worker is left"):
        WatchedExecutor(cast(Any, SimpleNamespace(result=fails)), [], "").result()
    assert WatchedExecutor(cast(Any, SimpleNamespace(result=lambda: ("job", 1))), [], "").result() == ("job", 1)
