"""The leaderboard keeps its order as trials are added, replaced and settled anew, as if all of them were sorted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evomerge.optimize.ordering import front, rank_key
from evomerge.scoring.gates import Gate
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.trial import Trial

GATES = {"a": Gate("a", 0.3), "b": Gate("b", None)}
FLOORS = Floors(GATES, {"a": 1.0, "b": 1.0}, traded=("a", "b"))


@st.composite
def trials(draw: Any) -> list[Trial]:
    """Trials of a study as they are put on the board: some are begun, then ended, then promoted."""
    puts = []
    grid = st.integers(0, 4).map(lambda n: n / 4)
    for number in range(draw(st.integers(0, 12))):
        label = draw(st.sampled_from(["base", "uniform", ""]))
        kind = "search" if not label else "reference"
        begun = Trial(number, kind, label, {}, "[]", "", 0)  # type: ignore[arg-type]
        scores = {"a": draw(grid), "b": draw(grid)}
        state = draw(st.sampled_from(["running", "complete", "pruned", "failed"]))
        ended = replace(begun, state=state, digest=draw(st.sampled_from("xyz") if state == "complete" else st.none()))
        if state in ("complete", "pruned"):
            ended = replace(ended, scores=scores, objective=scores["a"] + scores["b"])
        puts.append([begun, *([] if state == "running" else [ended])])
        if state == "pruned" and draw(st.booleans()):
            puts[-1].append(replace(ended, state="complete", digest="p"))
    order = draw(st.permutations([at for at, steps in enumerate(puts) for _ in steps]))
    return [puts[at].pop(0) for at in order]


@given(trials())
def test_it_is_what_sorting_all_trials_gives(puts: list[Trial]) -> None:
    # parents first, as in a study: digests of parents that come later would take merges off a front
    puts = sorted(puts, key=lambda trial: not trial.is_parent)
    board = Leaderboard(Floors.unsettled())
    for trial in puts[: len(puts) // 2]:
        board.put(trial)
    board.settle(FLOORS)
    for trial in puts[len(puts) // 2 :]:
        board.put(trial)
    latest = {trial.number: trial for trial in puts}
    finished = [t for t in latest.values() if t.state != "running"]
    ranked = sorted(finished, key=lambda t: (rank_key(FLOORS.outcome(t)), t.number))
    parents = {t.digest for t in latest.values() if t.is_parent}
    merges = [t for t in ranked if t.state == "complete" and t.digest not in parents]
    feasible = [t for t in merges if FLOORS.outcome(t).feasible]
    assert board.ranked() == ranked
    assert board.n_finished == len(finished)
    assert {t.number: t for t in board.trials} == latest
    assert board.merges() == merges
    assert board.merges(2) == merges[:2]
    assert board.best() == (feasible[0] if feasible else None)
    assert board.front() == [feasible[at] for at in front([FLOORS.outcome(t).values for t in feasible])]
    for before in (0, 3, 20):
        assert list(board.in_order(before)) == [t for t in ranked if t.number < before]


def test_nothing_is_feasible_before_the_floors_are_settled() -> None:
    trial = Trial(0, "search", "", {}, "[]", "", 0, "complete", {"a": 1.0, "b": 1.0}, objective=2.0, digest="x")
    board = Leaderboard(Floors.unsettled({"a": 1, "b": 1}), [trial])
    assert board.best() is None
    board.settle(FLOORS)
    assert board.best() == trial


def test_the_latest_merges() -> None:
    scored = [
        Trial(n, "search", "", {}, "[]", "", 0, "pruned" if n % 3 else "complete", {"a": 0.5, "b": n / 20}, objective=n,
              digest=str(n))
        for n in range(20)
    ]  # fmt: skip
    assert [t.number for t in Leaderboard(FLOORS, scored).latest_merges(3, before=15)] == [12, 9, 6]


def test_a_parent_that_is_scored_late_leaves_no_merge_of_its_weights_on_the_front() -> None:
    def scored(number: int, kind: Any, label: str, digest: str | None, state: Any = "complete") -> Trial:
        scores = {"a": 1.0, "b": 1.0}
        return Trial(number, kind, label, {}, "[]", "", 0, state, scores, objective=2.0, digest=digest)

    trials = [
        scored(0, "reference", "base", "x"),
        scored(1, "reference", "one", None, "failed"),
        scored(2, "reference", "uniform", "y"),
        scored(3, "reference", "one", "y"),
    ]
    assert Leaderboard(FLOORS, trials).front() == Leaderboard(FLOORS, trials).merges() == []
    assert Leaderboard(FLOORS, trials).base == trials[0]
