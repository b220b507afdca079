"""Another fitness file over a recorded run: nothing is evaluated, the order follows, what cannot be had is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.scoring.gates import lower_bound
from evomerge.study.after.rank import Ranked
from evomerge.study.run.recorded import recorded_scores

Study = Callable[..., Path]
Edit = Callable[[dict[str, Any]], Any]


def lower_is_better(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    """Slice b becomes bits per byte, and a's items share passages."""
    task = yaml.safe_load(Path("tasks/tiny_b.yaml").read_text())
    for key in ("doc_to_choice", "target_delimiter"):
        del task[key]
    task |= {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "question"}
    task["metric_list"] = [{"metric": "bits_per_byte"}]
    Path("tasks/tiny_b.yaml").write_text(yaml.safe_dump(task))
    fitness["slices"]["b"] = {"task": "tiny_b", "metric": "bits_per_byte", "floor": {"of": "base", "margin": 5.0}}
    fitness["slices"]["a"]["cluster"] = "label"
    fitness["pruning"] = False


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs that several tests read."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def run(tiny_study: Study, kept: Path) -> Callable[..., None]:
    def make(trials: int = 12) -> None:
        space, there = tiny_study(lower_is_better), kept / str(trials)
        if not there.is_dir():
            evomerge.search(space, trials=trials)
            shutil.copytree("runs", there)
        shutil.copytree(there, "runs", dirs_exist_ok=True)

    return make


def again(edit: Edit = lambda fitness: None) -> Ranked:
    fitness = yaml.safe_load(Path("fitness.yaml").read_text())
    edit(fitness)
    Path("new.yaml").write_text(yaml.safe_dump(fitness))
    return evomerge.rank("space", "new.yaml")


def test_what_an_earlier_release_asked_is_held_to_the_same_bounds(tiny_study: Study) -> None:
    """With confidence the finalists share the error, and one of a smaller budget is no exception."""

    def sure(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["confidence"] = 0.8
        for one in fitness["slices"].values():
            one["floor"] = {"of": "base", "margin": 0.3}

    evomerge.search(tiny_study(sure), trials=12)
    evomerge.resume("space", trials=20)
    state, ranked = evomerge.status("space"), again()
    assert state.release is not None
    assert ranked.holdout is not None
    level = state.release.confidence
    assert level is not None
    earlier = [t for t in ranked.holdout.trials if t.kind == "search" and t.number not in state.release.numbers]
    assert earlier
    for trial in earlier:
        scores = recorded_scores(state.folder.items, trial, "holdout")
        assert trial.bounds == {name: lower_bound(score, 1, level) for name, score in scores.items()}


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_the_same_file_gives_the_same_order(tiny_study: Study, confidence: float | None) -> None:
    def sure(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        lower_is_better(space, fitness)
        fitness["confidence"] = confidence

    evomerge.search(tiny_study(sure), trials=12)
    state, ranked = evomerge.status("space"), again()
    assert ranked.search.ranked() == state.search.ranked()
    assert ranked.search.gates == state.search.gates
    assert ranked.holdout is not None
    assert state.release is not None
    assert ranked.holdout.ranked() == state.release.leaderboard.ranked()
    assert ranked.winner == ranked.before == state.winner
    assert (ranked.unscored, ranked.pruned, ranked.ahead) == ((), [], [])


def test_nothing_is_evaluated(run: Callable[..., None]) -> None:
    run(trials=7)
    before = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*") if file.is_file()}
    code = "import sys; from evomerge.cli import main\n"
    code += "for c in (['rank', 'space', '--fitness', 'fitness.yaml'], ['compare', 'space', 'base', 'one']):\n"
    code += "    assert main(c) == 0\nassert not {'torch', 'lm_eval', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*") if file.is_file()} == before


def test_weights_decide_the_order(run: Callable[..., None]) -> None:
    run()

    def only(name: str) -> Edit:
        def edit(fitness: dict[str, Any]) -> None:
            fitness["objective"] = "weighted_mean"
            for key, piece in fitness["slices"].items():
                piece["weight"] = 1.0 if key == name else 0.0

        return edit

    for name in ("a", "b"):
        scores = [t.scores[name] for t in again(only(name)).search.merges()]
        assert scores == sorted(scores, reverse=True)


def test_a_slice_left_out_is_gone(run: Callable[..., None]) -> None:
    run()
    ranked = again(lambda fitness: fitness["slices"].pop("b"))
    assert set(ranked.search.gates) == {"a"}
    assert all(t.objective == t.scores["a"] for t in ranked.search.merges())


def test_floors_move_relative_ones_by_the_recorded_references(run: Callable[..., None]) -> None:
    run()
    base = evomerge.status("space").search.trials[0].scores["b"]
    ranked = again(lambda fitness: fitness["slices"]["b"].update(floor={"of": "base", "margin": -0.25}))
    assert ranked.search.gates["b"].floor == pytest.approx(base + 0.25)
    none = again(lambda fitness: fitness["slices"]["a"].update(floor=1.0))
    assert none.winner is None
    assert none.before is not None


def test_confidence_is_held_against_the_recorded_items(run: Callable[..., None]) -> None:
    from evomerge.scoring.gates import lower_bound
    from evomerge.study.run.recorded import recorded_scores

    run()
    ranked = again(lambda fitness: fitness.update(confidence=0.95))
    trial = ranked.search.trials[5]
    scores = recorded_scores(ranked.folder.items, trial, "search")
    assert all(item.cluster in ("0", "1", "2") for item in scores["a"].items)
    assert trial.bounds == {"a": lower_bound(scores["a"], 1, 0.95), "b": lower_bound(scores["b"], -1, 0.95)}
    assert trial.bounds["a"] < trial.scores["a"]

    def independent(fitness: dict[str, Any]) -> None:
        fitness["confidence"] = 0.95
        del fitness["slices"]["a"]["cluster"]

    alone = again(independent).search.trials
    assert all(a.bounds["a"] >= t.bounds["a"] for a, t in zip(alone, ranked.search.trials, strict=True))
    assert any(a.bounds["a"] > t.bounds["a"] for a, t in zip(alone, ranked.search.trials, strict=True))


def test_it_is_what_a_study_with_that_file_would_have_said(tiny_study: Study) -> None:
    """Random search does not look at the fitness: both studies hold the same trials."""

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        lower_is_better(space, fitness)
        space["optimizer"] = {"name": "random", "seed": 1}

    def edit(fitness: dict[str, Any]) -> None:
        fitness.update(objective="weighted_mean", confidence=0.8)
        fitness["slices"]["a"].update(weight=20, floor=0.05)
        fitness["slices"]["b"].update(floor={"of": "best_source", "margin": 0.5})

    evomerge.search(tiny_study(change), trials=12)
    ranked = again(edit)
    evomerge.search("space.yaml", run="new", fitness="new.yaml", trials=12)
    state = evomerge.status("new")
    assert [t.number for t in ranked.search.ranked()] == [t.number for t in state.search.ranked()]
    assert [t.objective for t in ranked.search.trials] == [t.objective for t in state.search.trials]
    assert [dict(t.bounds) for t in ranked.search.trials] == [dict(t.bounds) for t in state.search.trials]
    assert ranked.search.gates == state.search.gates


NOT_MEASURED: list[tuple[Edit, str]] = [
    (
        lambda f: f["slices"]["a"].update(task="tiny_b"),
        r"new.yaml:\d+: slices.a.task: task is 'tiny_b' here, and was",
    ),
    (lambda f: f["slices"]["a"].update(metric="acc_norm"), r"slices.a.metric: metric is 'acc_norm' here"),
    (lambda f: f["slices"]["a"].update(items=5), r"slices.a.items: items is 5 here, and was not given when"),
    (lambda f: f["slices"]["a"].update(num_fewshot=2), r"slices.a.num_fewshot: num_fewshot is 2 here"),
    (lambda f: f["slices"]["b"].update(direction="higher"), r"slices.b.direction: direction is 'higher' here"),
    (lambda f: f.update(split={"search": 0.25}), r"split.search: split.search is 0.25 here, and was 0.5"),
    (lambda f: f["slices"].update(c={"task": "x", "metric": "acc"}), r"slices.c: the run 'space' has no slice 'c'"),
    (
        lambda f: f["slices"]["a"].update(floor={"of": "tow", "keep": 1}),
        r"unknown source 'tow'; did you mean 'two'",
    ),
    (lambda f: f.update(objective="geometric_mean"), r"objective: geometric_mean cannot hold slice 'b'"),
    (lambda f: [s.update(weight=0) for s in f["slices"].values()], "no slice has a weight above 0"),
]


def test_what_was_not_measured_is_named(run: Callable[..., None]) -> None:
    run(trials=5)
    for edit, message in NOT_MEASURED:
        with pytest.raises(InputError, match=message):
            again(edit)


def test_an_objective_that_the_base_has_none_of_is_named(tiny_study: Study) -> None:
    def negative(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        Path("mine.py").write_text("def score(model, tokenizer, items):\n    return [-1.0 for _ in items]\n")
        Path("mine.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(20)))
        fitness["slices"]["c"] = {"python": "mine:score", "data": "mine.jsonl"}

    evomerge.search(tiny_study(negative), trials=5)
    with pytest.raises(InputError, match=r"new.yaml:\d+: objective: .*geometric_mean.* scores of base: .*but c is -1"):
        again(lambda fitness: fitness.update(objective="geometric_mean"))


def test_a_field_that_was_not_kept_matters_for_confidence_alone(run: Callable[..., None]) -> None:
    run(trials=5)

    def other(fitness: dict[str, Any]) -> None:
        fitness["slices"]["a"]["cluster"] = "question"

    assert again(other).search.settled

    def sure(fitness: dict[str, Any]) -> None:
        other(fitness)
        fitness["confidence"] = 0.95

    with pytest.raises(InputError, match=r"slices.a.cluster: the run's items were kept without their 'question'"):
        again(sure)


def test_the_command(run: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    run()
    again(lambda fitness: fitness["slices"]["b"].update(weight=0))
    assert main(["rank", "space", "--fitness", "new.yaml", "-o", "best.yaml"]) == 0
    said = capsys.readouterr().out
    for part in ("ranked by new.yaml", "base", "winner on the holdout split", "before", "gain over the base"):
        assert part in said
    assert "under new.yaml" in Path("best.yaml").read_text()
    assert main(["rank", "space", "--fitness", "new.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["winner"]["recipe_id"][:16] in Path("best.yaml").read_text()
    assert len(told["order"]) == 9
    again(lambda fitness: fitness["slices"]["a"].update(floor=1.0))
    assert main(["rank", "space", "--fitness", "new.yaml", "-o", "none.yaml"]) == 1
    assert "no winner: no merge passes every floor" in capsys.readouterr().out
    assert not Path("none.yaml").exists()


def test_a_stopped_trial_cannot_win(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from evomerge.study.run.store import Store

    run()
    first = again().search.merges()[0]
    trials = Store.trials

    def stopped(self: Store) -> list[Any]:
        return [replace(t, state="pruned") if t.number == first.number else t for t in trials(self)]

    monkeypatch.setattr(Store, "trials", stopped)
    ranked = again()
    assert [t.number for t in ranked.pruned] == [t.number for t in ranked.ahead] == [first.number]
    assert first.number not in [t.number for t in ranked.search.merges()]
    assert ranked.winner is None or ranked.winner.number != first.number


def test_top_trials_without_holdout_scores_are_named(run: Callable[..., None]) -> None:
    run(trials=20)

    def turned(fitness: dict[str, Any]) -> None:
        fitness["slices"]["a"]["weight"] = 0

    ranked = again(turned)
    state = evomerge.status("space")
    scored = {t.number for t in state.rescored}
    passed_over = {t.number for t in [t for t in state.search.merges() if t.kind == "search"][:5]}
    top = [t.number for t in ranked.search.merges() if t.kind == "search"][:5]
    assert [t.number for t in ranked.unscored] == [n for n in top if n not in scored | passed_over]
    assert ranked.unscored, "the other objective has other favourites"
    assert ranked.winner is None or ranked.winner.number in scored


def test_before_the_end_of_a_search(tiny_study: Study) -> None:
    from ..test_search import StopAfter

    with pytest.raises(KeyboardInterrupt):
        evomerge.search(tiny_study(lower_is_better), observer=StopAfter(2))
    assert main(["rank", "space", "--fitness", "fitness.yaml"]) == 1
    with pytest.raises(KeyboardInterrupt):
        evomerge.resume("space", observer=StopAfter(6))
    ranked = again()
    assert ranked.holdout is None
    assert ranked.winner == evomerge.status("space").search.best()
