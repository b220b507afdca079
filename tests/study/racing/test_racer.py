"""Candidates scored on a part of the items: nothing that could win is lost, and every item is accounted for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evomerge
import evomerge.study.holdout as holdout
from evomerge.errors import TrialError
from evomerge.report.items_scored import ItemsScored
from evomerge.scoring.gates import Gate, feasible, judge
from evomerge.scoring.stats.aggregation import ItemWeights, MeanKind
from evomerge.study.after.status import NothingFeasible
from evomerge.study.observer import Observer
from evomerge.study.racing import race, rungs
from evomerge.study.racing.bounds import ScoreBounds
from evomerge.study.racing.racer import Racer, is_cheap
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.items import load_items, read_items
from evomerge.study.run.leaderboard import Floors
from evomerge.study.run.trial import Trial
from evomerge.study.trials import Trials
from evomerge.types import ItemScore, SliceScore

from ...conftest import write_task

Study = Callable[..., Path]


@pytest.fixture
def study(tiny_study: Study, tmp_path: Path) -> Study:
    """The tiny study with enough items that a part of them says something."""

    def make(**fitness_keys: Any) -> Path:
        write_task(tmp_path / "tasks", "tiny_a", 1, count=240)
        write_task(tmp_path / "tasks", "tiny_b", 2, count=160)
        keys = {"confidence": None, "pruning": True, **fitness_keys}
        return tiny_study(lambda space, fitness: (fitness.update(keys), space["budget"].update(trials=28)))

    return make


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models differ by chance only: whatever is predicted of them is noise, and counts here all the same. A
    question is closed soon."""
    monkeypatch.setattr(race, "NOISE", math.inf)
    monkeypatch.setattr(race, "DOUBT", 0.4)
    monkeypatch.setattr(race.Race, "_first_part", 0.0)


def facts(run: str) -> list[tuple[Any, ...]]:
    trials = evomerge.status(run).search.trials
    return [(t.number, t.label, t.genome, t.digest, dict(t.scores), t.state, t.reason, t.evaluated) for t in trials]


@pytest.mark.parametrize(("optimizer", "least"), [("cma-es", 5), ("random", 1)])
def test_some_candidates_meet_few_items_and_the_best_all(
    study: Study, optimizer: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation races against itself; a candidate that comes alone only falls out where it is clearly behind."""
    monkeypatch.setattr(holdout, "TOP", 0)  # nobody is scored in full for the release
    result = evomerge.search(study(), optimizer=optimizer)
    trials = [t for t in result.search.trials if t.kind == "search"]
    stopped = [t for t in trials if t.state == "pruned"]
    assert len(stopped) >= least
    assert all(0 < t.evaluated < t.items and t.reason and t.pruned_by in ("racing", "early_stop") for t in stopped)
    assert all(t.evaluated == t.items for t in result.search.trials if t.state == "complete")
    assert all(t.state == "complete" for t in result.holdout.trials)
    assert result.winner is not None
    best = result.search.best()
    assert best is not None
    assert best.state == "complete"


@pytest.mark.slow
def test_where_races_prune_none_few_that_come_alone_are_raced(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "DOUBT", 0.0)  # each may be the best
    raced: list[int] = []
    run = race.Race.run

    def noted(self: race.Race) -> None:
        raced.append(self._field[0].trial.number)
        run(self)

    monkeypatch.setattr(race.Race, "run", noted)
    space = study(pruning=["racing"])
    result = evomerge.search(space, optimizer="random", run="whole")
    searched = [t.number for t in result.search.trials if t.kind == "search"]
    assert all(t.state == "complete" and t.evaluated == t.items for t in result.search.trials)
    assert raced == [n for n in searched if n < searched[0] + 16 or n % 4 == 0]
    # It is a function of what ended before, and a resumed search decides alike.
    first, raced[:] = list(raced), []
    with pytest.raises(KeyboardInterrupt):
        evomerge.search(space, optimizer="random", run="parts", observer=StopAt(20))
    evomerge.resume("parts")
    assert sorted(set(raced)) == first
    assert facts("parts") == facts("whole")


def test_a_stopped_candidate_is_exported_only_on_demand(study: Study) -> None:
    result = evomerge.search(study())
    stopped = next(t for t in result.search.trials if t.state == "pruned")
    part = f"{stopped.evaluated} of {stopped.items} items"
    with pytest.raises(NothingFeasible, match=f"{stopped.name} was pruned after {part}, whether it passes is open"):
        evomerge.export("space", trial=stopped.number)
    text = evomerge.export("space", trial=stopped.number, allow_infeasible=True)
    assert f"predicted from {part}" in text


def test_every_item_is_accounted_for(study: Study) -> None:
    result = evomerge.search(study())
    folder = RunFolder.named("space")
    searched = [t for t in result.search.trials if t.kind == "search"]
    kept = [len(read_items(folder.items, t.number, "search")) for t in searched]
    assert kept == [t.evaluated for t in searched]
    account = ItemsScored.of(result.search.trials)
    assert account.scored == sum(kept)
    assert account.in_full == len(searched) * searched[0].items
    assert account.scored + account.early_stop[1] + account.racing[1] == account.in_full
    assert f"{account.scored:,} of the {account.in_full:,}" in str(account)


def test_one_switch_scores_everything(study: Study) -> None:
    result = evomerge.search(study(pruning=False))
    assert all(t.state == "complete" and t.evaluated == t.items for t in result.search.trials)
    assert ItemsScored.of(result.search.trials).share == 1.0


@pytest.mark.slow
def test_racing_with_all_items_equals_no_racing(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    evomerge.search(study(pruning=False), run="plain")
    monkeypatch.setattr(rungs, "_SHARES", (1.0,))
    evomerge.search(study(pruning=["racing", "representative"]), run="raced")
    assert facts("raced") == facts("plain")


class StopAt(Observer):
    """Ctrl-C in the middle of a generation: as the n-th piece of work begins."""

    def __init__(self, count: int) -> None:
        self._left = count

    def trial_started(self, trial: Trial) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_race_that_was_cut_short_goes_on_to_the_same_end(study: Study) -> None:
    space = study()
    evomerge.search(space, run="whole")
    with pytest.raises(KeyboardInterrupt):
        evomerge.search(space, run="parts", observer=StopAt(9))
    for count in (3, 9, 5, 8):
        with pytest.raises(KeyboardInterrupt):
            evomerge.resume("parts", observer=StopAt(count))
    evomerge.resume("parts")
    assert facts("parts") == facts("whole")


@pytest.mark.slow
@pytest.mark.parametrize("written", [False, True])
def test_a_kill_while_items_are_kept_loses_no_trial(
    study: Study, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    space = study()
    evomerge.search(space, run="whole")
    calls = [0]

    def dying(keep: Any) -> Any:
        def keep_and_die(*about: Any) -> None:
            calls[0] += 1
            if calls[0] == 20 and not written:
                raise KeyboardInterrupt
            keep(*about)
            if calls[0] == 20:
                raise KeyboardInterrupt

        return keep_and_die

    with monkeypatch.context() as patched:
        for name in ("keep_items", "add_items"):
            patched.setattr(Trials, name, dying(getattr(Trials, name)))
        with pytest.raises(KeyboardInterrupt):
            evomerge.search(space, run="parts")
    evomerge.resume("parts")
    assert facts("parts") == facts("whole")


def test_graded_items_are_no_shares() -> None:
    """10 of 40 items seen, all of them 1: the bound of 40 graded items may be higher than that of 40 right answers."""
    items = {str(i): ItemScore(str(i), 1.0 if i < 10 else 0.995) for i in range(40)}
    composition = ItemWeights.of(MeanKind(1, best=1.0, worst=0.0), items.values())
    prospects = ScoreBounds(Floors({"a": Gate("a", 0.95)}, {"a": 1.0}), max, {"a": composition}, {}, 0.95)
    score = SliceScore(0.99625, 0.0004, tuple(items.values()))
    assert feasible(judge({"a": score}, {"a": Gate("a", 0.95)}, {}, 0.95))
    assert prospects.missed_floor({"a": dict(list(items.items())[:10])}, {}) is None


def test_no_finished_part_is_scored_again(study: Study) -> None:
    """A candidate that met the first items before the interruption is not asked them once more."""
    space = study()
    with pytest.raises(KeyboardInterrupt):
        evomerge.search(space, observer=StopAt(4 + 5))
    folder = RunFolder.named("space")
    times = {f: f.stat().st_mtime_ns for f in folder.items.glob("trial-0000[4-8].search.parquet")}
    assert len(times) == 5
    with pytest.raises(KeyboardInterrupt):
        evomerge.resume("space", observer=StopAt(3))  # the other three of the generation
    assert {f: f.stat().st_mtime_ns for f in times} == times


@pytest.mark.parametrize("pruning", [["early_stop"], True])
def test_a_candidate_beyond_hope_is_infeasible(study: Study, pruning: Any) -> None:
    slices = {
        "a": {"task": "tiny_a", "metric": "acc", "floor": 0.0},
        "b": {"task": "tiny_b", "metric": "acc", "floor": 0.9},
    }
    evomerge.search(study(pruning=pruning, slices=slices), run="stopped", trials=12)
    leaderboard = evomerge.status("stopped").search
    stopped = [t for t in leaderboard.trials if t.pruned_by == "early_stop"]
    assert stopped
    for trial in stopped:
        assert "misses the floor of b: at best 0." in str(trial.reason)
        assert not leaderboard.outcome(trial).feasible
        assert leaderboard.outcome(trial).shortfall > 0
    ranked = [t.number for t in leaderboard.ranked()]
    assert sorted(ranked) == [t.number for t in leaderboard.trials]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, ItemScore]]]:
    """Items of candidates that were scored in full: right or wrong on `a`, bits per byte on `b`."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(20, 200, size=40)
    trials = []
    for _ in range(12):
        skill = draw.random()
        right = draw.random(60) < skill
        bits = draw.gamma(8.0, 0.4, size=40)
        a = {f"a/{k}": ItemScore(f"a/{k}", float(r)) for k, r in enumerate(right)}
        b = {
            f"b/{k}": ItemScore(f"b/{k}", float(v), float(w)) for k, (v, w) in enumerate(zip(bits, sizes, strict=True))
        }
        trials.append({"a": a, "b": b})
    return trials


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 11), st.floats(0.0, 1.0), st.floats(2.0, 4.5), st.sampled_from([None, 0.9]), st.integers(0, 2**32)
)
def test_who_was_stopped_early_was_never_feasible(
    recorded: Any, at: int, share: float, bits: float, confidence: float | None, seed: int
) -> None:
    """Whatever the floors and the order of the items: if the evaluation is stopped and then continued to the end, a
    floor is missed; and who misses one is stopped at the last item at the latest."""
    items = recorded[at]
    mixtures = {"a": MeanKind(1, best=1.0, worst=0.0), "b": MeanKind(-1, best=0.0)}
    compositions = {name: ItemWeights.of(mixtures[name], items[name].values()) for name in items}
    gates = {"a": Gate("a", share, sign=1), "b": Gate("b", -bits, sign=-1)}
    prospects = ScoreBounds(Floors(gates, {"a": 1.0, "b": 1.0}), max, compositions, {}, confidence)
    order = [(name, item) for name in items for item in items[name]]
    np.random.default_rng(seed).shuffle(order)
    met: dict[str, dict[str, ItemScore]] = {"a": {}, "b": {}}
    stopped = None
    for name, item in order:
        met[name][item] = items[name][item]
        stopped = stopped or prospects.missed_floor(met, {})
    scores = {}
    for name, composition in compositions.items():
        value = composition.value(composition.units(items[name]))
        scores[name] = SliceScore(value, 0.05, tuple(items[name].values()) if name == "a" else ())
    passes = feasible(judge(scores, gates, {}, confidence))
    if stopped:
        assert not passes
    elif confidence is None:
        assert passes or min(abs(scores["a"].value - share), abs(scores["b"].value + bits)) < 1e-6


@pytest.mark.slow
def test_a_metric_that_is_no_mean_is_asked_whole(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race.Race, "_needed", lambda *about: 0.0)  # all but one of a generation fall out at once
    monkeypatch.setattr(holdout, "TOP", 0)
    task = (tmp_path / "tasks" / "tiny_a.yaml") if (tmp_path / "tasks").is_dir() else None
    assert task is not None
    slices = {
        "m": {"task": "tiny_m", "metric": "mcc"},
        "b": {"task": "tiny_b", "metric": "acc"},
    }
    text = task.read_text().replace("task: tiny_a", "task: tiny_m")
    (tmp_path / "tasks" / "tiny_m.yaml").write_text(text.replace("metric: acc", "metric: mcc"))
    result = evomerge.search(study(slices=slices), trials=12)
    folder = RunFolder.named("space")
    for trial in (t for t in result.search.trials if t.state == "pruned"):
        items = load_items(folder.items, trial.number, "search")
        assert len(items["m"]) == len(load_items(folder.items, 0, "search")["m"])
        assert len(items["b"]) < len(load_items(folder.items, 0, "search")["b"])
    assert any(t.state == "pruned" for t in result.search.trials)


@pytest.mark.slow
def test_a_promotion_that_fails_loses_no_items(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruned trial that cannot be scored in full stays as it is, with the items of a slice that is asked whole."""
    slices = {"m": {"task": "tiny_m", "metric": "mcc"}, "b": {"task": "tiny_b", "metric": "acc"}}
    text = (tmp_path / "tasks" / "tiny_a.yaml").read_text().replace("task: tiny_a", "task: tiny_m")
    (tmp_path / "tasks" / "tiny_m.yaml").write_text(text.replace("metric: acc", "metric: mcc"))
    before: dict[int, Any] = {}
    promote = Racer.score_in_full

    def failing(self: Racer, trial: Trial) -> Any:
        before[trial.number] = load_items(RunFolder.named("space").items, trial.number, "search")

        def score(*about: Any) -> Any:
            raise TrialError("out of memory")
            yield

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Trials, "score", score)
            return (yield from promote(self, trial))

    monkeypatch.setattr(Racer, "score_in_full", failing)
    monkeypatch.setattr(race.Race, "_needed", lambda *about: 0.0)
    evomerge.search(study(slices=slices), trials=14)
    assert before
    assert before == {n: load_items(RunFolder.named("space").items, n, "search") for n in before}


def test_what_is_cheap_follows_from_counts() -> None:
    """200,000 parameters on 10,000 tokens; seven billion; and answers whose length nobody knows."""
    assert is_cheap(200_000, 10_000)
    assert not is_cheap(7_000_000_000, 10_000)
    assert not is_cheap(200_000, None)
