"""What a search would do: data for programs, lines for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli import main


def test_json_is_data_and_lines_say_the_same(
    tiny_study: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def timed(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["a"]["timeout"] = "90s"
        space["budget"] = {"trials": 12, "time": "2m", "items": 4000}

    space = tiny_study(timed)
    assert main(["search", str(space), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["models"] == {name: str(space.parent / "models" / name) for name in ("base", "one", "two")}
    assert (told["methods"], told["genes"], told["slices"]) == (["task_arithmetic"], 4, ["a", "b"])
    assert (told["optimizer"]["name"], told["optimizer"]["population"]) == ("cma-es", 8)
    assert told["budget"] == {"trials": 12, "seconds": 120.0, "items": 4000}
    assert told["timeouts"] == {"a": 90.0}
    assert told["not checked"] == ["weights", "items"]
    assert main(["search", str(space), "--dry-run"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == told.keys()
    assert lines["genes"] == "4 searched values"
    assert lines["budget"] == "12 trials, 120 s, 4,000 items"
    assert lines["slices"] == "a, b"
    assert lines["timeouts"] == "a 90 s"
    assert lines["optimizer"].startswith("name cma-es, ")
