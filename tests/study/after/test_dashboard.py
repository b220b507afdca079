"""The numbers of a run's trials for Optuna's tools, and the page that optuna-dashboard makes of them."""

from __future__ import annotations

import json
import math
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.study.after.dashboard import RunView, is_loopback
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.store import Store, open_storage
from tests.conftest import INTERRUPTIBLE

Study = Callable[..., Path]


def high_floor(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    fitness["slices"]["a"]["floor"] = {"of": "best_source", "margin": 0.0}


@pytest.fixture
def finished(tiny_study: Study) -> evomerge.study.search.Result:
    return evomerge.search(tiny_study(high_floor), trials=10)


def stored() -> optuna.Study:
    storage = open_storage(RunFolder.named("space").journal, None)
    return optuna.load_study(study_name="space", storage=storage)


def test_a_study_holds_its_trials_numbers(finished: Any) -> None:
    study, known = stored(), {trial.number: trial for trial in finished.search.trials}
    assert study.metric_names == ["mean"]
    for trial in study.trials:
        keys = [*trial.user_attrs]
        for name in ("a", "b"):
            assert trial.user_attrs[f"score.{name}"] == known[trial.number].scores[name]
            assert keys.index(f"margin.{name}") < min(keys.index("recipe"), keys.index("genome"))
        margins = {v.slice: v.bound - v.floor for v in finished.search.verdicts(known[trial.number])}
        assert {name: trial.user_attrs[f"margin.{name}"] for name in margins} == margins
        assert [*trial.constraints.values()] == [
            -value if value < 0 else min(0.0, -value) for value in margins.values()
        ]
    assert [t.number for t in study.trials if all(c <= 0 for c in t.constraints.values())] == [
        t.number for t in finished.search.trials if finished.search.outcome(t).feasible
    ]
    assert any(c > 0 for t in study.trials[:4] for c in t.constraints.values())  # references miss floors, too


def test_lower_is_better_is_shown_as_it_is(tiny_study: Study) -> None:
    def losses(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["a"] = {"task": "tiny_a", "metric": "brier_score", "floor": 9.0}

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        losses(space, fitness)
        task = Path("tasks/tiny_a.yaml")
        task.write_text(task.read_text().replace("metric: acc", "metric: brier_score"))

    result = evomerge.search(tiny_study(change), trials=5)
    for trial, frozen in zip(result.search.trials, stored().trials, strict=True):
        assert frozen.user_attrs["score.a"] == -trial.scores["a"] > 0
        assert frozen.user_attrs["margin.a"] == pytest.approx(9.0 - frozen.user_attrs["score.a"])


def test_the_study_has_a_note(finished: Any) -> None:
    attributes = stored()._storage.get_study_system_attrs(stored()._study_id)
    note = attributes["dashboard:note_str:0"]
    assert re.search(r"winner is .*On the holdout items", note, re.S) if finished.winner else "No winner" in note
    assert "evomerge run space" in note
    assert "| a | acc | higher | 1 | best\\_source, at most 0 worse |" in note
    noted = [key for key in attributes if re.fullmatch(r"dashboard:\d+:note_str:0", key)]
    assert len(noted) == len(finished.holdout.trials)


def test_a_note_that_somebody_edited_stays(finished: Any) -> None:
    storage = open_storage(RunFolder.named("space").journal, None)
    study = storage.get_study_id_from_name("space")
    storage.set_study_system_attr(study, "dashboard:note_str:0", "mine")
    storage.set_study_system_attr(study, "dashboard:note_ver", 9)
    evomerge.resume("space", trials=12)
    again = open_storage(RunFolder.named("space").journal, None)
    assert again.get_study_system_attrs(study)["dashboard:note_str:0"] == "mine"


def test_a_reference_that_ended_before_its_floors_were_known_is_kept(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill behind the first reference loses no evaluation, and Optuna's tools see the reference end later."""
    from evomerge.study.trials import Trials

    space, end = tiny_study(high_floor), Trials.end

    def killed(self: Trials, *arguments: Any) -> Any:
        end(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trials, "end", killed)
        with pytest.raises(KeyboardInterrupt):
            evomerge.search(space, trials=6)
    [trial] = stored().trials
    assert trial.state.name == "RUNNING"
    assert math.isnan(trial.user_attrs["margin.a"])
    [base] = evomerge.status("space").search.trials
    assert (base.label, base.state) == ("base", "complete")
    result = evomerge.resume("space")
    assert [t.label for t in result.search.trials[:4]] == ["base", "one", "two", "uniform"]
    assert result.search.trials[0] == base
    assert stored().trials[0].state.name == "COMPLETE"
    assert math.isfinite(stored().trials[0].user_attrs["margin.a"])


# The page.


@pytest.fixture
def page(finished: Any) -> str:
    """The URL of the page of a finished run, which is served as long as the test runs."""
    pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard")
    urls: list[str] = []
    served = threading.Event()

    def ready(url: str) -> None:
        urls.append(url)
        served.set()

    def serve() -> None:
        evomerge.dashboard("space", port=0, ready=ready)

    threading.Thread(target=serve, daemon=True).start()
    assert served.wait(60)
    return urls[0]


def asked(url: str, data: bytes | None = None, method: str | None = None) -> Any:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def test_the_page_answers_with_trials_and_numbers(finished: Any, page: str) -> None:
    assert b"<html" in asked(f"{page}dashboard").lower()
    [study] = json.loads(asked(f"{page}api/studies"))["study_summaries"]
    assert study["study_name"] == "space"
    detail = json.loads(asked(f"{page}api/studies/{study['study_id']}?after=0"))
    assert detail["objective_names"] == ["mean"]
    assert "evomerge run space" in detail["note"]["body"]
    names = {attribute["key"]: attribute["sortable"] for attribute in detail["union_user_attrs"]}
    assert [names[key] for key in ("score.a", "margin.b", "holdout.a", "recipe")] == [True, True, True, False]
    assert [*names].index("holdout.a") < [*names].index("recipe")
    known = {trial.number: trial for trial in finished.search.trials}
    held = {trial.number: trial for trial in finished.holdout.trials}
    assert len(detail["trials"]) == len(known)
    for trial in detail["trials"]:
        values = {attribute["key"]: attribute["value"] for attribute in trial["user_attrs"]}
        assert float(values["score.a"]) == known[trial["number"]].scores["a"]
        assert math.isnan(float(values["holdout.a"])) == (trial["number"] not in held)
        if trial["number"] in held:
            assert float(values["holdout.a"]) == held[trial["number"]].scores["a"]
        feasible = finished.search.outcome(known[trial["number"]]).feasible
        assert all(value <= 0 for value in trial["constraints"]) == feasible


def test_the_page_changes_nothing(finished: Any, page: str) -> None:
    before = RunFolder.named("space").journal.read_bytes()
    [study] = json.loads(asked(f"{page}api/studies"))["study_summaries"]
    calls = [
        ("DELETE", f"studies/{study['study_id']}", b"{}"),
        ("PUT", f"studies/{study['study_id']}/note", json.dumps({"version": 99, "body": "x"}).encode()),
        ("POST", "studies", json.dumps({"study_name": "x", "directions": ["maximize"]}).encode()),
    ]
    for method, path, body in calls:
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked(f"{page}api/{path}", body, method)
        assert refused.value.code >= 400
    assert RunFolder.named("space").journal.read_bytes() == before


def test_runs_of_other_versions_have_the_numbers_too(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older version has not stored is made of the scores."""
    view = RunView(RunFolder.named("space"))
    study = view.get_study_id_from_name("space")
    whole = view.get_all_trials(study)
    plain = view._storage.get_all_trials

    def older(*arguments: Any, **others: Any) -> Any:
        trials = plain(study, deepcopy=True)
        for trial in trials:
            trial.user_attrs = {
                k: v for k, v in trial.user_attrs.items() if not re.match("score|margin", k) or k == "scores"
            }
            trial.system_attrs = {}
        return trials

    monkeypatch.setattr(view._storage, "get_all_trials", older)
    for trial, other in zip(view.get_all_trials(study), whole, strict=True):
        assert repr(trial.user_attrs) == repr(other.user_attrs)  # NaN is not itself
        assert trial.constraints == other.constraints


def test_a_port_in_use_is_one_line(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["dashboard", "space", "--port", str(taken.getsockname()[1])]) == 2
    assert re.fullmatch(r"error: --port: cannot listen on 127.0.0.1:\d+ .*--port\n", capsys.readouterr().err)


def test_without_the_package_it_is_one_line(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna_dashboard", None)
    with pytest.raises(InputError, match=r"not installed.*evomerge\[dashboard\]"):
        evomerge.dashboard("space")


def test_ctrl_c_ends_it_cleanly(finished: Any) -> None:
    pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard")
    process = subprocess.Popen([*INTERRUPTIBLE, "dashboard", "space", "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert re.match(r"http://127\.0\.0\.1:\d+/", line)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_which_hosts_are_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_a_trial_that_failed_has_no_numbers(tmp_path: Path) -> None:
    from tests.study.run.test_store import DIMENSIONS, GENOME, RECIPE, TrialResult

    storage = open_storage(tmp_path / "study.journal", None, warn=pytest.fail)
    store = Store.create(storage, "s", DIMENSIONS)
    trial = store.start("search", "", GENOME, RECIPE, 7, numbers={"score.a": math.nan})
    store.end(trial, TrialResult.failure("out of memory", {"total": 1.0}))
    [frozen] = storage.get_all_trials(0)
    assert math.isnan(frozen.user_attrs["score.a"])
    assert Store.open(open_storage(tmp_path / "study.journal", None), "s", DIMENSIONS) is not None
