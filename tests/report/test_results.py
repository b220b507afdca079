"""The final table: both splits, their intervals, the width of a screen, and what did not carry over."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import evomerge
from evomerge.cli import main
from evomerge.numbers import behind, number, short
from evomerge.report.results import CarriedOver, carried_over, result_table
from evomerge.report.verdicts import verdict
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.trial import Trial

Study = Callable[..., Path]


def rendered(thing: Any, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_three_slices_fit_a_screen(tiny_study: Study) -> None:
    def three(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["c"] = {**fitness["slices"]["b"], "floor": 1.0}

    result = evomerge.search(tiny_study(three), trials=9)
    drawn = rendered(result_table(result), 120).splitlines()
    assert max(map(len, drawn)) <= 120
    for trial in result.holdout.trials:
        line = next(i for i, text in enumerate(drawn) if text.split()[1:2] == ["base"])
        if trial.label == "base":
            assert f"{result.search.trials[0].scores['a']:.3f} (" in drawn[line]
            assert "search" in drawn[line]
            assert f"{trial.scores['a']:.3f} (" in drawn[line + 1]
            assert "holdout" in drawn[line + 1]


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.984252, (0.944, 0.996), "0.984 (0.94–1.00)"),
        (2.13412, (2.1331, 2.1349), "2.134 (2.133–2.135)"),
        (34.5678, (31.02, 38.9), "34.57 (31.0–38.9)"),
        (34567.8, (31020.0, 38900.0), "34,568 (31,020–38,900)"),
        (0.01, (-0.02, 0.04), "0.010 (-0.02 to 0.04)"),
        (0.5, None, "0.500"),
    ],
)
def test_a_score_is_short(value: float, interval: tuple[float, float] | None, text: str) -> None:
    assert number(value, short(value)) + behind(value, interval) == text


@pytest.mark.parametrize(
    ("winner", "base", "text"),
    [
        ((0.99, 0.985), (0.15, 0.16), "search +0.840, holdout +0.825: 0.015 (2 %) did not carry over"),
        ((0.99, 0.988), (0.15, 0.15), "search +0.840, holdout +0.838: 0.002 (less than 1 %) did not carry over"),
        ((0.9, 0.8), (0.5, 0.4), "search +0.400, holdout +0.400: all of it carried over"),
        ((-2.0, -2.2), (-1.9, -2.0), "search -0.100, holdout -0.200: there was none to carry over"),
        ((-2.0, -1.9), (-1.9, -2.0), "search -0.100, holdout +0.100: there was none to carry over"),
    ],
)
def test_what_did_not_carry_over(winner: tuple[float, float], base: tuple[float, float], text: str) -> None:
    assert str(CarriedOver(winner, base)) == f"gain over the base: {text}"


def trial(number: int, objective: float, label: str = "", kind: Any = "search") -> Trial:
    scores = {"a": objective}
    return Trial(number, kind, label, {}, "[]", "", 0, "complete", scores, objective=objective, digest=str(number))


def test_the_winner_is_the_best_on_the_holdout(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """All finalists but the last one were lucky on the search items: their holdout scores are made worse."""
    from evomerge.evaluator.evaluation import Evaluation
    from evomerge.evaluator.evaluator import Evaluator
    from evomerge.types import SliceScore

    evomerge.search(tiny_study(), run="plain", trials=14)
    state = evomerge.status("plain")
    assert state.release is not None
    *lucky, last = (state.search.trials[number] for number in state.release.chances)
    evaluate = Evaluator.evaluate

    def worse(self: Evaluator, recipe: Any, split: Any, *rest: Any) -> Evaluation:
        found = evaluate(self, recipe, split, *rest)
        if split != "holdout" or recipe.id not in {trial.recipe_id for trial in lucky}:
            return found
        falls = {name: SliceScore(s.value - 1.0, s.stderr, s.items) for name, s in found.scores.items()}
        return Evaluation(falls, found.digest, found.seconds)

    monkeypatch.setattr(Evaluator, "evaluate", worse)
    result = evomerge.search("space.yaml", run="lucky", trials=14)
    assert result.search.best() is not None
    assert lucky
    assert result.winner is not None
    assert result.winner.number == last.number
    assert {trial.number for trial in lucky} < {trial.number for trial in result.holdout.trials}


def test_gains_are_taken_from_either_split() -> None:
    search = Leaderboard(Floors(), [trial(0, 0.2, "base", "reference"), trial(1, 0.9), trial(2, 0.8)])
    holdout = Leaderboard(Floors(), [trial(0, 0.3, "base", "reference"), trial(2, 0.85)])
    found = carried_over(search, holdout, holdout.trials[1])
    assert found == CarriedOver((0.8, 0.85), (0.2, 0.3))
    assert found is not None
    assert found.lost == pytest.approx(0.05)
    assert carried_over(search, holdout, None) is None
    assert carried_over(search, Leaderboard(Floors(), [trial(2, 0.85)]), trial(2, 0.85)) is None


def test_damaged_items_cost_the_intervals_only(tiny_study: Study) -> None:
    result = evomerge.search(tiny_study(), trials=8)
    for file in Path("runs/space/items").glob("trial-00000*"):
        file.write_bytes(b"")
    drawn = rendered(result_table(result))
    assert "no intervals, as items are damaged or missing: base (search), base (holdout)" in drawn
    base, other = (next(line for line in drawn.splitlines() if f" {name} " in line) for name in ("base", "one"))
    assert ("(" in base, "(" in other) == (False, True)


def test_json_holds_both_splits(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study()
    assert main(["search", "space.yaml", "--trials", "8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    numbers = [[t["trial"] for t in told[side]["trials"]] for side in ("search", "holdout")]
    assert sorted(numbers[0]) == sorted(numbers[1])
    for side in ("search", "holdout"):
        for one in told[side]["trials"]:
            low, high = one["interval"]["a"]
            assert low <= one["scores"]["a"] <= high
    gain = told["carried_over"]
    assert gain["lost"] == pytest.approx(gain["gain"]["search"] - gain["gain"]["holdout"])
    assert gain["winner"]["holdout"] == told["winner"]["objective"]


def test_evaluate_shows_intervals(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study()
    words = ["evaluate", "models/one", "--fitness", "fitness.yaml", "--reference", "base=models/base"]
    main(words)
    assert "95 % interval" in capsys.readouterr().out
    main([*words, "--json"])
    about = json.loads(capsys.readouterr().out)["slices"]["a"]
    assert about["interval"][0] <= about["score"] <= about["interval"][1]
    assert (about["items"] > 0, about["floor"], about["passed"]) == (True, 0.0, True)


@pytest.mark.parametrize(("chances", "words"), [({7: 0.4, 3: 0.9}, "gave the winner 90%"), ({7: 0.4}, "none of them")])
def test_the_chance_that_is_told_is_the_winners(tiny_study: Study, chances: dict[int, float], words: str) -> None:
    """The uniform average is scored beside the finalists, and may win where it is none of them, or not the last."""
    result = evomerge.search(tiny_study(), trials=8)
    assert result.release is not None
    average = next(t for t in result.holdout.trials if t.label == "uniform")
    numbers = {3: average.number, 7: next(t.number for t in result.holdout.trials if t.kind == "search")}
    release = replace(result.release, winner=average, chances={numbers[n]: c for n, c in chances.items()})
    told = " ".join(verdict(replace(result, winner=average, release=release)))
    assert f"the holdout was asked about {len(chances)} of {len(chances)} finalists; the" in told
    assert words in told
