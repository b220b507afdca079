"""What the end of a search says: the winner beside others, what would help, and the file that keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.report.rankings import ranked_words
from evomerge.report.results import plain_merges, result_table
from evomerge.report.verdicts import ties, verdict, worse_than_base
from evomerge.scoring.gates import Gate
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.items import write_items
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.trial import Trial
from evomerge.types import ItemScore
from tests.report.examples import Made

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]


def answered(folder: Path, number: int, split: Any, right: int, of: int = 200) -> Trial:
    """A trial that answers the first `right` of the items."""
    answers = [float(at < right) for at in range(of)]
    items = {"a": [ItemScore(f"a/{at}", answer, 1.0, answer) for at, answer in enumerate(answers)]}
    folder.mkdir(parents=True, exist_ok=True)
    write_items(folder, number, split, items)
    share = right / of
    kind: Any = "search" if number else "reference"
    label = "" if number else "base"
    return Trial(number, kind, label, {}, "[]", "", 0, "complete", {"a": share}, {"a": 0.03}, objective=share,
                 digest=str(number), evaluated=of, items=of)  # fmt: skip


def ended(folder: RunFolder, search: list[Trial], holdout: list[Trial], floor: float | None = 0.8) -> Any:
    boards = [Leaderboard(Floors({"a": Gate("a", floor)}, {"a": 1.0}), side) for side in (search, holdout)]
    facts = {"a": {"metric": "acc", "sign": 1, "weight": 1.0}}
    return SimpleNamespace(
        folder=folder, search=boards[0], holdout=boards[1], winner=boards[1].best(), release=None, facts=facts,
        confidence=None,
    )  # fmt: skip


def test_worse_than_the_base_within_a_floor(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    sides = [[answered(folder.items, 0, split, 190), answered(folder.items, 5, split, 165)] for split in
             ("search", "holdout")]  # fmt: skip
    [line] = worse_than_base(ended(folder, *sides))
    assert line == (
        "note: worse than the base beyond chance on the holdout items: "
        "a 0.8250 against 0.9500 (within its floor, p < 0.001)"
    )
    [line] = worse_than_base(ended(folder, *sides, floor=None))
    assert "it has no floor" in line
    sides[1][1] = answered(folder.items, 5, "holdout", 188)
    assert worse_than_base(ended(folder, *sides)) == [], "two items are chance"


def test_a_parent_that_passes_is_named_where_no_merge_does(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for right, named in ((190, True), (150, False)):
        sides = [[answered(folder.items, 0, split, right), answered(folder.items, 5, split, 140)] for split in
                 ("search", "holdout")]  # fmt: skip
        words = verdict(ended(folder, *sides))
        assert ("note: base itself passes every floor" in words) is named
        assert any(line.startswith("no winner") for line in words)


def test_what_cannot_be_told_apart_from_the_winner(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    search = [answered(folder.items, 0, "search", 100)]
    search += [answered(folder.items, number, "search", right) for number, right in ((5, 180), (6, 178), (7, 160))]
    search.append(replace(search[1], number=8))  # the winner's weights once more
    result = ended(
        folder, search, [answered(folder.items, 0, "holdout", 100), answered(folder.items, 5, "holdout", 180)]
    )
    assert ties(result) == ["cannot be told apart from the winner by the search items: trial 6 (of the 2 best others)"]
    assert any("trial 6" in line for line in verdict(result))
    assert not any("told apart" in line for line in verdict(result, look_closer=False))
    (folder.items / "trial-00006.search.parquet").write_bytes(b"")
    assert ties(result) == [], "damaged items cost the line only"


def test_equal_weights_and_soups_stand_beside_the_winner() -> None:
    made = Made(labels=("equal 0.2", "equal 0.4", "greedy soup", "greedy soup", "another"))
    search = made.board("ccccc")
    order = [t.number for t in search.merges() if t.kind == "search"]
    equal, soup = (min((n for n in order if n in numbers), key=order.index) for numbers in ((5, 6), (7, 8)))
    assert [t.number for t in plain_merges(search)] == [equal, soup]
    holdout = Leaderboard(search.floors, [t for t in search.trials if t.kind == "reference" or t.number == 9])
    result = replace(made.result, search=search, holdout=holdout, winner=None)
    rows = [tuple(row.heads) for row in result_table(result).rows]
    for number in (equal, soup):
        label = f"trial {number} ({search.trials[number].label})"
        assert [row for row in rows if row[0] == label] == [(label, "search")], "it was no finalist"
        assert rows.index((label, "search")) > rows.index(("base", "search"))
    assert rows[-1][0].startswith(("winner: ", "closest: "))
    assert rows[-1][1] == "holdout"


def test_the_end_stands_in_the_folder_and_in_status(tiny_study: Study, capsys: Said) -> None:
    tiny_study(lambda space, fitness: space["optimizer"].update(warm_start=True))
    assert main(["search", "space.yaml", "--trials", "14"]) == 0
    printed = capsys.readouterr().out
    summary = Path("runs/space/summary.txt").read_text()
    assert summary.splitlines()[0] == "Scores on both splits; the search never saw the holdout items"
    assert "\x1b" not in summary
    assert "(equal 0." in summary
    for line in printed.splitlines():
        if line.startswith(("winner:", "gain over", "items scored", "│ winner")):
            assert line in summary
    assert main(["status", "space"]) == 0
    told = capsys.readouterr().out
    for line in printed.splitlines():
        if line.startswith(("winner:", "gain over", "items scored", "│ winner")):
            assert line in told
    Path("runs/space/summary.txt").unlink()
    assert main(["resume", "space"]) == 0
    assert Path("runs/space/summary.txt").read_text() == summary


def test_a_summary_that_cannot_be_written_costs_nothing(tiny_study: Study, capsys: Said) -> None:
    tiny_study()
    evomerge.search("space.yaml", trials=6)
    Path("runs/space/summary.txt").mkdir()
    capsys.readouterr()
    assert main(["resume", "space"]) == 0
    said = capsys.readouterr()
    assert "winner: " in said.out
    assert "summary.txt is not written" in said.err


def test_without_a_winner_it_says_which_floor_and_by_how_much(tiny_study: Study, capsys: Said) -> None:
    def strict(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["a"]["floor"] = 0.99

    tiny_study(strict)
    assert main(["search", "space.yaml", "--trials", "8"]) == 1
    printed = capsys.readouterr().out
    assert "what would help:" in printed
    [lower] = [line for line in printed.splitlines() if line.startswith("  lower floors: ")]
    [more] = [line for line in printed.splitlines() if line.startswith("  more trials: ")]
    holdout = evomerge.status("space").holdout
    near = next(holdout.merges_in_order())
    passed = float(lower.partition("passes with a ")[2].split()[0])
    assert passed <= near.scores["a"] < passed + 1e-4
    assert f"({0.99 - passed:.4g} lower)" in lower
    assert "%" in more
    assert Path("runs/space/summary.txt").read_text().count("lower floors") == 1


def test_a_front_without_a_winner_says_it_too(tiny_study: Study, capsys: Said) -> None:
    def strict(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["optimizer"] = {"name": "nsga-ii", "seed": 3}
        fitness["objective"] = "pareto"
        fitness["slices"]["a"]["floor"] = 0.99

    tiny_study(strict)
    assert main(["search", "space.yaml", "--trials", "8"]) == 1
    printed = capsys.readouterr().out
    assert "  lower floors: " in printed
    assert "more trials: " in printed


def test_a_ranking_without_a_winner_shows_that_the_floor_is_missed() -> None:
    """By less than four digits show."""
    made = Made(("a",))
    board = made.board("c")
    scores = {t.number: 0.9 for t in board.trials}
    trials = [replace(t, scores={"a": scores[t.number] - 0.00001}, objective=0.9) for t in board.trials]
    missed = Leaderboard(Floors({"a": Gate("a", 0.9, "0.9")}, {"a": 1.0}), trials)
    ranked = replace(made.ranked, search=missed, holdout=None, winner=None)
    words = "\n".join(ranked_words(ranked))
    assert "closest is " in words
    assert "a 0.89999, floor 0.90000" in words
