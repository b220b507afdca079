"""Trackers are told of every trial once, whatever happens to them, and their tools' records hold the trials."""

from __future__ import annotations

import importlib.util
import json
import math
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.study.observer import Observer
from evomerge.study.run.folder import RunFolder
from evomerge.study.trackers.tracker import TRACKERS, Tracker, flat, make_trackers
from evomerge.study.trackers.tracking import FILE

Study = Callable[..., Path]


class Kept(Tracker):
    """Keeps what it is told."""

    name = "kept"

    def __init__(self) -> None:
        self.config: Mapping[str, Any] = {}
        self.told: dict[int, Mapping[str, float]] = {}
        self.summary: Mapping[str, Any] = {}
        self.found: str | None = None

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        self.found, self.record = self.record, f"record of {run.name}"
        self.config = config

    def trial(self, number: int, numbers: Mapping[str, float]) -> None:
        assert number not in self.told
        self.told[number] = numbers

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.summary = summary


class Said(Observer):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_it_is_told_every_trial_in_the_metrics_own_direction(tiny_study: Study) -> None:
    kept = Kept()
    result = evomerge.search(tiny_study(), trials=8, trackers=[kept])
    assert kept.config["space"]["optimizer"]["name"] == "cma-es"
    assert kept.config["fitness"]["slices"]["a"]["metric"] == "acc"
    assert [*kept.told] == [trial.number for trial in result.search.trials]
    for trial in result.search.trials:
        numbers = kept.told[trial.number]
        assert numbers["objective"] == trial.objective
        assert numbers["score.a"] == trial.scores["a"]
        assert math.isfinite(numbers["margin.b"])
        assert {key.removeprefix("gene.") for key in numbers if key.startswith("gene.")} == set(trial.genome)
    winner = result.winner
    assert (kept.summary["state"], kept.summary["winner"]) == ("finished", winner.number if winner else None)
    if winner is not None:
        assert kept.summary["holdout.a"] == winner.scores["a"]


def test_a_resumed_search_goes_on_with_the_record(tiny_study: Study) -> None:
    class Ends(Kept):
        def trial(self, number: int, numbers: Mapping[str, float]) -> None:
            super().trial(number, numbers)
            if number == 5:
                raise KeyboardInterrupt

    first, second, late = Ends(), Kept(), Kept()
    space = tiny_study()
    with pytest.raises(KeyboardInterrupt):
        evomerge.search(space, trials=8, trackers=[first])
    assert (first.found, first.summary["state"]) == (None, "interrupted")
    late.name = "late"
    evomerge.resume("space", trackers=[second, late])
    assert second.found == "record of space"
    assert late.found is None
    assert sorted({*first.told} | {*second.told}) == sorted(late.told) == list(range(8))
    assert {*first.told} & {*second.told} <= {5}  # it was not known whether this one had arrived


@pytest.mark.parametrize("fails", ["start", "trial", "finish"])
@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(3)])
def test_one_that_fails_warns_once_and_ends_no_search(tiny_study: Study, fails: str, error: BaseException) -> None:
    def fail(*_: Any) -> None:
        raise error

    broken, whole, said = Kept(), Kept(), Said()
    broken.name = "broken"
    setattr(broken, fails, fail)
    result = evomerge.search(tiny_study(), trials=6, trackers=[broken, whole], observer=said)
    assert len(result.search.trials) == len(whole.told) == 6
    [warning] = [line for line in said.warnings if "broken" in line]
    assert "records no more" in warning


def test_a_tracker_is_named_once_and_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no tracker 'mlfow'; did you mean 'mlflow'"):
        make_trackers(["mlfow"])
    wrong: list[tuple[Any, str]] = [("mlflow", "trackers is the text 'mlflow'"), ([5], "5 is no tracker"),
                                    ([Tracker], "Tracker'> is no tracker")]  # fmt: skip
    for chosen, said in wrong:
        with pytest.raises(InputError, match=said):
            make_trackers(chosen)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"wandb is not installed; pip install 'evomerge\[trackers\]'"):
        make_trackers(["wandb"])
    own = Tracker()
    assert make_trackers([own, own]) == [own]


def test_the_command_line_refuses_a_wrong_name_before_anything_is_written(
    tiny_study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_study()
    for more in ([], ["--dry-run"]):
        assert main(["search", "space.yaml", "--track", "wandbb,mlflow", *more]) == 2
        assert "--track: there is no tracker 'wandbb'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_what_a_tracker_prints_is_no_result(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    class Talks(Kept):
        def trial(self, number: int, numbers: Mapping[str, float]) -> None:
            print("hello")

    evomerge.search(tiny_study(), trials=5, trackers=[Talks()])
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("hello")) == ("", 5)


def test_nested_settings_are_flat() -> None:
    assert dict(flat({"a": {"b": 1, "c": {}}, "d": (1, 2)})) == {"a.b": 1, "a.c": {}, "d": [1, 2]}


def test_a_file_that_cannot_be_read_costs_nothing(tiny_study: Study) -> None:
    evomerge.search(tiny_study(), trials=5, trackers=[Kept()])
    file = RunFolder.named("space").path / FILE
    assert json.loads(file.read_text()) == {"kept": {"trials": 5, "record": "record of space"}}
    file.write_text('{"kept": 3}')
    again = Kept()
    evomerge.resume("space", trials=6, trackers=[again])
    assert len(again.told) == 6


# The tools. Each has an offline record, which is read with the tool's own means.


@pytest.fixture
def recorded(request: pytest.FixtureRequest, tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """A search of eight trials in two sessions, recorded by the tool that the test names: number -> score of a."""
    name = request.param
    if importlib.util.find_spec(TRACKERS[name][0]) is None:
        pytest.skip(f"needs {name}")
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    space = tiny_study()
    monkeypatch.setenv("TRACKIO_DIR", str(Path("trackio").absolute()))
    said = Said()
    evomerge.search(space, trials=6, trackers=[name], observer=said)
    result = evomerge.resume("space", trials=8, observer=said)  # the run remembers the tracker
    assert not [warning for warning in said.warnings if "records no more" in warning]
    return {trial.number: trial.scores["a"] for trial in result.search.trials}


@pytest.mark.trackers
@pytest.mark.parametrize("recorded", ["mlflow"], indirect=True)
def test_mlflow(recorded: dict[int, float]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("evomerge")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("space", "FINISHED")
    assert run.data.params["space.optimizer.name"] == "cma-es"
    history = client.get_metric_history(run.info.run_id, "score.a")
    assert {metric.step: metric.value for metric in history} == recorded
    assert len(history) == len(recorded)


def logged(content: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB behind wandb's header of seven bytes: blocks of 32 KiB, in which each piece has a
    checksum (4 bytes), its length (2), and whether it is whole (1), the first, a middle or the last one (4)."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if -at % 32768 < 7:
            at += -at % 32768
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


@pytest.mark.trackers
@pytest.mark.parametrize("recorded", ["wandb"], indirect=True)
def test_wandb(recorded: dict[int, float]) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[int, float] = {}
    files = sorted(Path("wandb").glob("offline-run-*/*.wandb"))
    assert len({file.stem for file in files}) == 1  # one id: `wandb sync` makes one run of both sessions
    for file in files:
        for data in logged(file.read_bytes()):
            record = Record.FromString(data)
            values = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            if "trial" in values:
                found[values["trial"]] = values["score.a"]
    assert found == recorded


@pytest.mark.trackers
@pytest.mark.parametrize("recorded", ["tensorboard"], indirect=True)
def test_tensorboard(recorded: dict[int, float]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("runs/space/tensorboard").Reload()
    scalars = events.Scalars("score.a")
    assert {event.step: event.value for event in scalars} == pytest.approx(recorded, abs=1e-6)
    assert len(scalars) == len(recorded)
    assert "config/text_summary" in events.Tags()["tensors"]


@pytest.mark.trackers
@pytest.mark.parametrize("recorded", ["trackio"], indirect=True)
def test_trackio(recorded: dict[int, float]) -> None:
    [file] = Path("trackio").glob("evomerge.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert {name for name, _, _ in rows} == {"space"}
    values = {step: json.loads(metrics) for _, step, metrics in rows}
    assert {step: v["score.a"] for step, v in values.items() if "score.a" in v} == recorded
