"""The screen of a running search: everything important is on it, at any size, and no line wraps."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from evomerge.report.chart import chart
from evomerge.report.live import LiveView
from evomerge.report.tally import Tally
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial
from tests.report.examples import SLICES, Made
from tests.report.terminal import Terminal


def trials(made: Made, count: int, *, feasible: bool = True) -> Leaderboard:
    """References, then candidates in generations of eight that get better and better."""
    board = made.board("")
    floors = {name: gate.floor or 0.0 for name, gate in made.gates.items()}
    for reference in board.trials:
        board.put(replace(reference, scores={name: floor - 0.2 for name, floor in floors.items()}))
    for number in range(len(board.trials), len(board.trials) + count):
        better = 0.001 * number if feasible else -0.5
        scores = {name: floor + better for name, floor in floors.items()}
        trial = made.trial(number, "search", "equal 0.4" if number == 5 else "")
        seconds = {"total": 2.7, "materialize": 0.3, "score": 2.25}
        counts = {"evaluated": 40 if number % 2 else 100, "items": 100, "seconds": seconds}
        objective = sum(scores.values()) / len(scores)
        board.put(replace(trial, scores=scores, objective=objective, generation=1 + number // 8, **counts))
    return board


def drawn(
    made: Made, board: Leaderboard, width: int, height: int, *, encoding: str = "utf-8"
) -> tuple[Terminal, list[str]]:
    """The terminal with a search on it, and the lines of its screen."""

    class Stream(io.StringIO):
        def __init__(self) -> None:
            super().__init__()

        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

    written = Stream()
    view = LiveView(Console(file=written, force_terminal=True, width=width, height=height, legacy_windows=False))
    terminal = Terminal(width, height)
    with view:
        view.launched("support-search-2024", 100, 7200.0, {name: gate.sign for name, gate in made.gates.items()})
        view.stage("references", 5, 5)
        view.recorded(board)
        view.stage("search", board.n_finished, 100)
        view.trial_started(made.trial(board.n_finished, "search", ""))
        view.slice_started(made.slices[-1])
        for trial in board.trials[-3:]:
            view.trial_finished(trial, board)
        terminal.feed(written.getvalue().replace("\n", "\r\n"))
    rest = Terminal(width, height)
    rest.feed(written.getvalue().replace("\n", "\r\n"))
    assert (rest.cursor_shown, rest.plain, rest.alternate, rest.unknown) == (True, True, False, [])
    assert not any(rest.screen), "nothing of it is left"
    return terminal, terminal.screen


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_everything_important_is_visible(count: int, width: int, height: int) -> None:
    made = Made(SLICES[:count])
    board = trials(made, 40)
    terminal, screen = drawn(made, board, width, height)
    text = "\n".join(screen)
    assert terminal.wrapped == 0
    assert len(screen) <= height
    assert "run support-search-2024  0:00:0" in screen[0]
    assert "generation 6" in screen[0]
    assert re.search(r"references +[━─]+ 5/5", text)
    assert re.search(r"search +━+─+ 45/100  0:00:0\d of 2:00:00, about 0:0\d:\d\d left", text)
    assert "feasible     40 of 40 candidates (100%)" in text
    assert "seconds      2.70 a candidate: merge 0.30, evaluate 2.25" in text
    assert "items        1,200 of 4,000 saved (30%)" in text
    best = board.best()
    assert best is not None
    assert f"objective    {best.objective:.4f}, the best that passes every floor" in text
    assert "╯" in text, "a chart"
    assert re.search(rf"best: {best.name} +score +floor +above it +base", text)
    for name in made.slices:
        line = next(line for line in screen if line.startswith(name[:9]))
        value = made.gates[name].sign * best.scores[name]
        assert f"{value:.4f}" in line
        assert "+0.04" in line


def test_many_slices_leave_room_for_the_chart() -> None:
    made = Made(SLICES)
    terminal, screen = drawn(made, trials(made, 40), 80, 24)
    assert terminal.wrapped == 0
    assert sum("┤" in line for line in screen) == 3
    assert re.match(r"and \d+ more slices; all of them pass", screen[-1])


def test_slices_that_miss_their_floors_are_seen_first() -> None:
    made = Made(SLICES)
    board = made.board("")
    floors = {name: gate.floor or 0.0 for name, gate in made.gates.items()}
    scores = {name: floor + (0.1 if name != SLICES[-1] else -0.1) for name, floor in floors.items()}
    near = replace(made.trial(5, "search", ""), scores=scores, objective=1e6)
    other = Leaderboard(board.floors, [*(t for t in board.trials if t.label != "uniform"), near])
    _, screen = drawn(made, other, 80, 24)
    assert any(line.startswith("closest: trial 5") for line in screen)
    [missed] = [line for line in screen if "✗" in line]
    assert missed.startswith(SLICES[-1][:9])
    assert "✗ -0.1000" in missed


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (20, 5), (10, 3), (200, 50)])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_wraps_whatever_the_names(size: tuple[int, int], encoding: str) -> None:
    names = ["漢字" * 30, "x" * 300, "[red]a\x1b[31m\x07b", "ok"]
    made = Made(names, labels=("y" * 200,))
    terminal, screen = drawn(made, trials(made, 12), *size, encoding=encoding)
    assert terminal.wrapped == 0
    assert len(screen) <= size[1]
    if encoding == "ascii":
        assert "━" not in "".join(screen)


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ([None, 0.1, 0.1, 0.2, 0.2, 0.3], ["0.3000 ┤     ╭", "       ┤   ╭─╯", "0.1000 ┤ ──╯"]),
        ([0.5, 0.5], ["0.5000 ┤", "       ┤", "0.5000 ┤──"]),
        ([None, None], []),
        ([], []),
        ([None, 0.1, 0.9], ["0.9000 ┤  ╭", "       ┤  │", "0.1000 ┤ ─╯"]),
    ],
)
def test_a_chart_is_a_line_of_steps(values: Sequence[float | None], lines: list[str]) -> None:
    assert [line.rstrip() for line in chart(values, 40, 3)] == lines


def test_a_chart_has_room_for_all_trials() -> None:
    """Of many trials a column shows the last one of its share: the end of the line is the best of all."""
    lines = chart([index / 1000 for index in range(3000)], 60, 5)
    assert max(map(len, lines)) == 60
    assert lines[0].startswith("2.9990 ┤")
    assert lines[0][-1] != " "
    drawn = chart([0.1, 0.2], 20, 3, ascii_only=True)
    assert all(letter.isascii() for line in drawn for letter in line)


def test_a_tally_is_that_of_all_trials_however_they_come() -> None:
    made = Made()
    board = trials(made, 20)
    at_once, one_by_one = Tally(), Tally()
    at_once.add_all(board)
    growing = Leaderboard(board.floors)
    for trial in board.trials:
        growing.put(trial)
        one_by_one.add(trial, growing)
    assert at_once.best == one_by_one.best
    best = board.best()
    assert best is not None
    assert at_once.best[-1] == best.objective
    assert vars(at_once) == vars(one_by_one)


def test_what_failed_or_is_another_ones_costs_no_time() -> None:
    made = Made()
    board = trials(made, 4)
    failed = made.trial(20, "search", "", "failed")
    copied: Trial = replace(board.trials[-1], number=21, duplicate_of=8, seconds={"total": 0.0})
    for trial in (failed, copied):
        board.put(trial)
    tally = Tally()
    tally.add_all(board)
    assert (tally.searched, tally.feasible) == (5, 5)
    assert tally.mean("total") == pytest.approx(2.7)
