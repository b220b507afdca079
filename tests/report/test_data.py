"""What `--json` prints is JSON, whatever the names and numbers are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from evomerge.escape import printable
from evomerge.report.data import (
    as_json,
    compared_data,
    evaluated_data,
    ranked_data,
    result_data,
    run_data,
    status_data,
)
from evomerge.report.paths import path_data
from evomerge.study.run.driver import Driver
from tests.report.examples import Made
from tests.report.test_shown import HOSTILE


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_a_text_of_letters_that_print(name: str, tmp_path: Path) -> None:
    made = Made((f"{name}1", f"{name}2"), (f"{name}s", name), (name,), name, folder=tmp_path)
    parts = [result_data(made.result), ranked_data(made.ranked), compared_data(made.compared), path_data(made.path)]
    parts += [evaluated_data(made.evaluated), status_data(made.status()), run_data(made.unreadable)]
    printed = as_json(parts)
    assert printable(printed.replace("\n", "")) == printed.replace("\n", "")
    assert f"{name}1" in json.loads(printed)[0]["search"]["floors"]


def test_what_is_no_number_is_null() -> None:
    printed = as_json({"a": math.nan, "b": [math.inf, -math.inf, 0.5], "c": ({"d": math.nan},), "e": True, "f": "\x7f"})
    assert json.loads(printed) == {"a": None, "b": [None, None, 0.5], "c": [{"d": None}], "e": True, "f": "\x7f"}
    assert "\x7f" not in printed


def test_status_tells_running_from_stopped_and_finished() -> None:
    made = Made()
    process = Driver(7, "host", "2024-05-06 07:08:09")
    running, stopped, finished = made.status(process), made.status(), made.status(finished=True)
    assert [status_data(s)["state"] for s in (running, stopped, finished)] == ["running", "stopped", "finished"]
    assert run_data(running)["state"] == "running"
    expected = {"process": 7, "host": "host", "since": "2024-05-06 07:08:09", "certain": True}
    assert status_data(running)["driver"] == expected
    assert status_data(stopped)["driver"] is None
    for trial in status_data(stopped)["search"]["trials"]:
        assert trial["predicted"] == (trial["state"] == "pruned")
    assert status_data(stopped)["holdout"]["trials"]
