"""The view of a running search: stages with their counts, a clock that runs, plain lines without a terminal."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import evomerge
from evomerge.escape import printable
from evomerge.report import live
from evomerge.report.live import Clock, LineView, LiveView, view
from evomerge.report.shown import console
from evomerge.study.observer import Observer
from evomerge.study.run.leaderboard import Leaderboard
from tests.report.examples import Made

SIGNS = {"a": 1}


class Screen(io.StringIO):
    """A terminal that keeps all that was ever on it."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """Without control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())


def panel(width: int = 100) -> tuple[LiveView, Screen]:
    screen = Screen()
    shown = view(Console(file=screen, force_terminal=True, width=width, height=50))
    assert isinstance(shown, LiveView)
    return shown, screen


def last(screen: Screen, word: str) -> str:
    """The last line on the screen that begins with a word."""
    return [line.rstrip() for line in screen.text.replace("\r", "\n").splitlines() if line.startswith(word)][-1]


def test_the_stages_have_counts_of_their_own() -> None:
    """What was loaded before the search is no part of its count, and after it the holdout follows."""
    shown, screen = panel()
    search, _ = Made().both
    with shown:
        shown.progress("loaded 16 GB of 16 GB", 1.0)
        shown.launched("space", 11, None, SIGNS)
        shown.stage("references", 0, 5)
        assert last(screen, "references").endswith("0/5")
        assert last(screen, "search").endswith("-")
        for done in range(1, 6):
            shown.stage("references", done, 5)
        shown.stage("search", 5, 11)
        assert last(screen, "search").endswith("5/11")
        shown.trial_finished(search.trials[-2], search)
        assert "11/11" in last(screen, "search")
        shown.stage("best in full", 0, 2)
        shown.stage("best in full", 1, 2, "trial 7")
        assert last(screen, "best in full").endswith("1/2")
        assert "left" not in last(screen, "search")
        shown.stage("holdout", 0, 9)
        shown.stage("holdout", 3, 9, "base")
        assert last(screen, "holdout").endswith("3/9")
        assert "scoring on the holdout items" in screen.text
    assert "100/" not in screen.text


def test_the_clock_runs_while_a_candidate_is_scored() -> None:
    shown, screen = panel()
    with shown:
        shown.launched("space", 60, None, SIGNS)
        shown.trial_started(Made().trial(7, "search", ""))
        shown.slice_started("a")
        deadline = time.monotonic() + 30
        while "run space  0:00:01" not in screen.text and time.monotonic() < deadline:
            time.sleep(0.1)
    assert "run space  0:00:01" in screen.text
    assert "scoring trial 7: a  0:00:01" in screen.text


class Time:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_what_is_left_is_estimated_by_the_search_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = Time()
    monkeypatch.setattr(live, "time", now)
    clock = Clock(20, None)
    now.now += 1000  # the references
    clock.begin_search()
    assert clock.left(4) == "?"
    now.now += 10
    clock.tick()
    assert clock.left(5) == "0:02:30"
    now.now += 5
    assert clock.left(5) == "0:02:25"
    now.now += 200  # far longer than the others: nobody knows
    assert clock.left(5) == "?"
    assert clock.left(20) == "0:00:00"


def test_a_budget_of_time_shows_time_over_all_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = Time()
    monkeypatch.setattr(live, "time", now)
    clock = Clock(None, 3600.0, spent=1800.0)
    now.now += 65
    assert clock.budget() == "0:31:05 of 1:30:00"
    assert clock.left(5) == "0:58:55"
    shown, screen = panel()
    now.now += 1e4
    with shown:
        shown.launched("space", None, 3600.0, SIGNS, 1800.0)
        shown.stage("search", 7, None)
        now.now += 60
        shown.trial_finished(Made().trial(7, "search", ""), Made().both[0])
        assert re.match(r"search +\d+ +0:31:00 of 1:30:00, about 0:59:00 left", last(screen, "search"))
        shown.stage("holdout", 0, 9)
        now.now += 500
        shown.stage("holdout", 1, 9, "base")
        assert re.match(r"search +\d+ +0:31:00 of 1:30:00$", last(screen, "search"))


class Stages(Observer):
    """Notes the stages, and can stop the study after so many trials."""

    def __init__(self, stop: int = 10**9) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.stop = stop

    def stage(self, name: Any, done: int, total: int | None, last: str = "") -> None:
        self.heard.append((name, done, total))

    def trial_finished(self, trial: Any, leaderboard: Leaderboard) -> None:
        if leaderboard.n_finished >= self.stop:
            raise KeyboardInterrupt


def test_a_study_tells_its_stages_also_after_a_resume(tiny_study: Any) -> None:
    first = Stages(stop=7)
    with pytest.raises(KeyboardInterrupt):
        evomerge.search(tiny_study(), trials=10, observer=first)
    assert first.heard[0] == ("references", 0, 4)
    assert first.heard[-1] == ("search", 4, 10)
    second = Stages()
    evomerge.resume("space", observer=second)
    assert second.heard[:2] == [("references", 4, 4), ("search", 7, 10)]
    names = [name for name, *_ in second.heard]
    assert names == sorted(names, key=["references", "search", "best in full", "holdout"].index)
    name, done, total = second.heard[-1]
    assert name == "holdout"
    assert done == total


@pytest.mark.parametrize("hostile", ["a\x1b[31m\x07b", "[/]", "[red]x", "a\nb", "{task.total}", ":boom:", "\u202ex"])
def test_names_are_text_in_both_views(hostile: str) -> None:
    made = Made((hostile,), (hostile,), (hostile,), hostile)
    search, _ = made.both
    for shown, stream in ((LineView(console(plain := io.StringIO())), plain), panel(10_000)):
        with shown:
            shown.phase(f"loading {hostile}")
            shown.note(hostile)
            shown.warn(hostile)
            shown.progress(hostile, 1.0)
            shown.launched(hostile, 60, None, {hostile: 1})
            shown.stage("search", 5, 60)
            shown.trial_started(search.trials[-1])
            shown.slice_started(hostile)
            for trial in search.trials[3:]:
                shown.trial_finished(replace(trial, reason=hostile), search)
            shown.stage("holdout", 1, 3, hostile)
        text = stream.text if isinstance(stream, Screen) else stream.getvalue()
        assert printable(hostile) in text
        kept = text.replace("\n", "").replace("\r", "")
        assert printable(kept) == kept


def test_without_a_terminal_each_event_is_a_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    shown = view(console(stream))
    assert type(shown) is LineView
    shown.phase("x")
    assert stream.getvalue() == "x ...\n"


class Gone(Screen):
    """A terminal or a pipe that was closed."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "closed") if not self.terminal else OSError(5, "closed")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_closed_terminal_or_pipe_ends_nothing(terminal: bool) -> None:
    shown = view(console(Gone(terminal)))
    assert isinstance(shown, LiveView) == terminal
    shown.launched("space", 60, None, SIGNS)
    shown.warn("x")
    shown.stage("holdout", 1, 2, "base")


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert type(view(Console(file=Screen(), force_terminal=True))) is LineView


def test_a_whole_search_with_hostile_names(tiny_study: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A model in a folder of that name, slices and sources: search, status and the log."""
    from evomerge.cli import main

    name = "[red]$x$ :boom:"

    def hostile(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        Path("models/one[").mkdir()
        Path("models/two").rename("models/one[/]")
        space["sources"] = {"two": "models/one[/]", "one": "models/one"}
        fitness["slices"] = {name: fitness["slices"]["a"], "b": fitness["slices"]["b"]}

    tiny_study(hostile)
    assert main(["search", "space.yaml", "--dry-run"]) == 0
    assert "models/one[/]" in capsys.readouterr().out
    assert main(["search", "space.yaml", "--trials", "8"]) == 0
    done = capsys.readouterr()
    assert name in done.out
    assert name in done.err
    assert main(["status", "space"]) == 0
    assert name in capsys.readouterr().out
    assert main(["compare", "space", "two", "one"]) == 0
    assert name in capsys.readouterr().out
    assert main(["evaluate", "models/one[/]", "--fitness", "fitness.yaml", "--reference", "base=models/base"]) == 0
    assert "models/one[/] on the holdout items" in capsys.readouterr().out
    assert yaml.safe_load(Path("runs/space/best.yaml").read_text())
