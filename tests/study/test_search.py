"""A whole study on tiny checkpoints: references, budget, gates, resume, export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.errors import BusyError, InputError, TrialError
from evomerge.evaluator.evaluator import Evaluator
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.study.after.status import NothingFeasible
from evomerge.study.observer import Observer
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.items import read_items
from evomerge.study.run.trial import Trial

Study = Callable[..., Path]


def facts(run: str) -> list[tuple[Any, ...]]:
    """What must not depend on interruptions."""
    trials = evomerge.status(run).search.trials
    return [(t.number, t.kind, t.label, t.genome, t.recipe_id, t.digest, dict(t.scores), t.state) for t in trials]


def test_search_scores_references_first_and_keeps_the_budget(tiny_study: Study) -> None:
    result = evomerge.search(tiny_study())
    trials = result.search.trials
    assert [t.label for t in trials[:4]] == ["base", "one", "two", "uniform"]
    assert len(trials) == 12
    assert all(t.state in ("complete", "pruned") and t.digest for t in trials)
    folder = RunFolder.named("space")
    for file in (folder.space, folder.fitness, folder.environment, folder.best, folder.log):
        assert file.is_file()
    items = read_items(folder.items, 0, "search")
    assert set(items.slice) == {"a", "b"}
    assert items[items.slice == "a"].score.mean() == pytest.approx(trials[0].scores["a"])


def test_winner_passes_every_floor_on_the_holdout(tiny_study: Study) -> None:
    result = evomerge.search(tiny_study())
    assert result.winner is not None
    assert all(v.passed for v in result.holdout.verdicts(result.winner))
    assert result.winner.number == evomerge.status("space").winner.number


def test_a_floor_whose_reference_fails_on_the_holdout(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run says why, and goes on from there."""
    space, evaluate = tiny_study(), Evaluator.evaluate

    def fails(self: Evaluator, recipe: Any, split: Any = "search", *rest: Any) -> Any:
        if split == "holdout":
            raise TrialError("no power")
        return evaluate(self, recipe, split, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(Evaluator, "evaluate", fails)
        with pytest.raises(InputError, match=r"base could not be scored on the holdout items \(no power\)"):
            evomerge.search(space)
    assert evomerge.resume("space").winner is not None


def test_search_and_holdout_items_are_disjoint(tiny_study: Study) -> None:
    evomerge.search(tiny_study())
    folder = RunFolder.named("space").items
    search, holdout = read_items(folder, 0, "search"), read_items(folder, 0, "holdout")
    assert set(search.item)
    assert not set(search.item) & set(holdout.item)


def test_no_winner_when_no_candidate_clears_a_floor(tiny_study: Study) -> None:
    def impossible(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["a"]["floor"] = 1.0

    result = evomerge.search(tiny_study(impossible))
    assert result.winner is None
    with pytest.raises(NothingFeasible, match="misses the floor of a"):
        evomerge.export("space")
    assert "merge_method" in evomerge.export("space", allow_infeasible=True)


def test_same_seed_same_study_other_seed_another(tiny_study: Study) -> None:
    space = tiny_study()
    for run, seed in (("x", 3), ("y", 3), ("z", 4)):
        evomerge.search(space, run=run, seed=seed, trials=8)
    assert facts("x") == facts("y")
    assert facts("x")[6:] != facts("z")[6:]


class StopAfter(Observer):
    """Behaves as Ctrl-C in the middle of the n-th evaluation."""

    def __init__(self, count: int) -> None:
        self.left = count

    def trial_started(self, trial: Trial) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["cma-es", "tpe", "nsga-ii", "random"])
def test_resume_equals_uninterrupted(tiny_study: Study, optimizer: str) -> None:
    space = tiny_study()
    evomerge.search(space, run="whole", optimizer=optimizer, trials=20)
    for counts in ((2, 5, 0, 7), (14,)):
        run = f"parts-{len(counts)}"
        with pytest.raises(KeyboardInterrupt):
            evomerge.search(space, run=run, optimizer=optimizer, trials=20, observer=StopAfter(counts[0]))
        for count in counts[1:]:
            with pytest.raises(KeyboardInterrupt):
                evomerge.resume(run, observer=StopAfter(count))
        evomerge.resume(run)
        assert facts(run) == facts("whole"), counts


def proposed(run: str) -> Any:
    """What the optimizer asked for. (What came out may differ: a run's first end scores its best in full.)"""
    return [(t.number, t.label, t.genome, t.digest) for t in evomerge.status(run).search.trials]


def test_budgets_are_totals(tiny_study: Study) -> None:
    space = tiny_study()
    generation = 8
    evomerge.search(space, run="short", trials=4 + generation)
    evomerge.resume("short", trials=4 + 2 * generation)
    evomerge.search(space, run="long", trials=4 + 2 * generation)
    assert proposed("short") == proposed("long")
    evomerge.resume("short", trials=10)
    assert len(facts("short")) == 20


def test_a_budget_of_items_is_a_total_of_what_was_scored(tiny_study: Study) -> None:
    space = tiny_study(lambda space, fitness: (fitness.update(pruning=False), space.update(budget={"items": 1})))
    result = evomerge.search(space, run="one")
    whole = result.search.trials[0].items
    assert [t.kind for t in result.search.trials] == ["reference"] * 4, "the references are scored whatever they cost"
    evomerge.resume("one", items=8 * whole)
    state = evomerge.status("one")
    assert (state.done, state.items) == (8, 8 * whole)
    assert state.finished
    evomerge.search(space, run="whole", items=8 * whole)
    assert facts("one") == facts("whole")
    evomerge.resume("one", items=8 * whole)
    assert evomerge.status("one").done == 8


def test_little_work_is_not_pruned_by_itself(tiny_study: Study) -> None:
    """Tiny models on few items: to prune would take longer, and the search says that it does not."""
    notes: list[str] = []

    class Listening(Observer):
        def note(self, message: str) -> None:
            notes.append(message)

    result = evomerge.search(tiny_study(), observer=Listening())
    assert all(trial.state == "complete" for trial in result.search.trials)
    assert [note for note in notes if note.startswith("items: every candidate is scored on all")]


def test_budgets_are_totals_wherever_they_end_when_all_items_are_scored(tiny_study: Study) -> None:
    space = tiny_study(lambda space, fitness: fitness.update(pruning=False))
    evomerge.search(space, run="short", trials=8)
    evomerge.resume("short", trials=15)
    evomerge.search(space, run="long", trials=15)
    assert facts("short") == facts("long")


def test_a_failed_candidate_is_recorded_and_the_study_goes_on(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Evaluator.evaluate

    def sometimes(self: Evaluator, recipe: Any, *rest: Any) -> Any:
        seen.append(recipe)
        if len(seen) == 7:
            raise TrialError("model.norm.weight holds NaN (task_arithmetic)")
        if len(seen) == 8:
            raise RuntimeError("CUDA out of memory")
        return evaluate(self, recipe, *rest)

    seen: list[Any] = []
    monkeypatch.setattr(Evaluator, "evaluate", sometimes)
    result = evomerge.search(tiny_study())
    failed = [t for t in result.search.trials if t.state == "failed"]
    assert [t.number for t in failed] == [6, 7]
    assert "model.norm.weight" in str(failed[0].reason)
    assert "out of memory" in str(failed[1].reason)
    assert len(result.search.trials) == 12
    assert result.search.ranked()[-1].state == "failed"


def test_resume_names_what_changed(tiny_study: Study, tiny_models: Path) -> None:
    space = tiny_study()
    evomerge.search(space, trials=5)
    text = space.read_text()
    space.write_text(text.replace("high: 1.0", "high: 0.9"))
    with pytest.raises(InputError, match=r"space file\.genes\.weight\.high"):
        evomerge.resume("space")
    space.write_text(text)
    fitness = space.with_name("fitness.yaml")
    old = fitness.read_text()
    fitness.write_text(old.replace("margin: 0.5", "margin: 0.4"))
    with pytest.raises(InputError, match=r"fitness file\.slices\.b\.floor\.margin"):
        evomerge.resume("space")
    fitness.write_text(old)
    items = space.parent / "tasks" / "tiny_a.jsonl"
    kept = items.read_text()
    items.write_text(kept.replace('"label": 0', '"label": 1', 1))
    with pytest.raises(InputError, match=r"items\.a"):
        evomerge.resume("space")
    items.write_text(kept)
    weights = space.parent / "models" / "one" / "model.safetensors"
    bits = bytearray(weights.read_bytes())
    bits[-1] ^= 1
    weights.write_bytes(bytes(bits))
    with pytest.raises(InputError, match=r"checkpoints\.one"):
        evomerge.resume("space")


def test_only_one_process_drives_a_run(tiny_study: Study) -> None:
    evomerge.search(tiny_study(), trials=5)
    with RunFolder.named("space").lock(), pytest.raises(BusyError, match="held by process"):
        evomerge.resume("space")


def test_half_written_journal_line_is_mended(tiny_study: Study) -> None:
    space = tiny_study()
    evomerge.search(space, run="whole", trials=9)
    evomerge.search(space, run="cut", trials=7)
    journal = RunFolder.named("cut").journal
    with journal.open("ab") as stream:
        stream.write(b'{"op_code": 5, "worker')
    assert len(evomerge.status("cut").search.trials) == 7
    evomerge.resume("cut", trials=9)
    assert facts("cut") == facts("whole")


def test_exported_recipe_merges_to_the_scored_bits(tiny_study: Study) -> None:
    def mixed(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["genes"] = {
            "method": {"choices": ["dare_ties", "ties", "task_arithmetic"], "per": ["layers"]},
            "weight": {"low": 0.1, "high": 1.0, "per": ["sources", "layers"]},
            "density": {"low": 0.2, "high": 0.9, "per": ["sources"]},
        }
        space["modules"] = {"attention": "self_attn"}
        space["budget"]["trials"] = 14

    result = evomerge.search(tiny_study(mixed))
    several = [t for t in result.search.trials if t.kind == "search" and len(t.recipe.documents) > 1]
    assert result.winner is not None
    # The winner may be one of them.
    for trial in {t.number: t for t in (*several[:2], result.winner)}.values():
        evomerge.export("space", f"{trial.number}.yaml", trial=trial.number, allow_infeasible=True)
        folder = evomerge.merge(Path(f"{trial.number}.yaml"), Path(f"out-{trial.number}"))
        assert checkpoint_digest(folder) == trial.digest


def test_evaluate_of_the_written_checkpoint_gives_the_recorded_scores(tiny_study: Study) -> None:
    result = evomerge.search(tiny_study())
    evomerge.export("space", "best.yaml")
    folder = evomerge.merge(Path("best.yaml"), Path("out"))
    for model in (folder, Path("best.yaml")):
        scored = evomerge.evaluate(model, "fitness.yaml", references={"base": "models/base"})
        assert {n: s.value for n, s in scored.scores.items()} == dict(result.winner.scores)
        assert scored.digest == result.winner.digest
        assert scored.feasible


def test_confidence_gates_look_at_the_lower_bound(tiny_study: Study) -> None:
    def strict(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["confidence"] = 0.95
        fitness["slices"]["b"]["floor"] = {"of": "base", "margin": 0.0}

    result = evomerge.search(tiny_study(strict), trials=5)
    base = result.search.trials[0]
    assert base.bounds["b"] < base.scores["b"]
    assert not result.search.outcome(base).feasible


def test_a_study_in_another_storage(tiny_study: Study) -> None:
    result = evomerge.search(tiny_study(), storage="sqlite:///study.db", trials=6)
    assert not result.folder.journal.exists()
    evomerge.resume("space", trials=8)
    assert len(evomerge.status("space").search.trials) == 8


def test_environment_names_versions_and_fingerprints(tiny_study: Study) -> None:
    evomerge.search(tiny_study(), trials=5)
    environment = json.loads(RunFolder.named("space").environment.read_text())
    assert set(environment["identity"]["checkpoints"]) == {"base", "one", "two"}
    assert environment["versions"]["torch"]


def test_resume_without_the_original_files_uses_the_runs_own_copies(tiny_study: Study) -> None:
    space = tiny_study()
    evomerge.search(space, run="whole", trials=9)
    evomerge.search(space, run="cut", trials=6)
    space.unlink()
    evomerge.resume("cut", trials=9)
    assert facts("cut") == facts("whole")


CALLABLE = '''
import torch

def score(model, tokenizer, items):
    """1 where the model gives the first letter after the prompt more than chance."""
    found = []
    for item in items:
        ids = tokenizer(item["question"], return_tensors="pt").input_ids
        with torch.no_grad():
            last = model(ids).logits[0, -1].softmax(-1)
        found.append(float(last[tokenizer(item["choices"][0].strip()).input_ids[0]] > 1 / 13))
    return found
'''


def test_a_python_slice(tiny_study: Study) -> None:
    def custom(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["own"] = {"python": "mine:score", "data": "tasks/tiny_a.jsonl", "floor": 0.0}

    space = tiny_study(custom)
    space.with_name("mine.py").write_text(CALLABLE)
    evomerge.search(space, run="whole", trials=8)
    evomerge.search(space, run="cut", trials=6)
    evomerge.resume("cut", trials=8)
    assert facts("cut") == facts("whole")
    assert all(0 <= t.scores["own"] <= 1 for t in evomerge.status("cut").search.trials)


def test_slerp_of_base_and_one_source(tiny_study: Study) -> None:
    def path(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        del space["sources"]["two"]
        space["genes"] = {"method": "slerp", "t": {"low": 0.0, "high": 1.0, "per": ["layers"]}}
        space.update(layers="each", interpolate=True)

    result = evomerge.search(tiny_study(path), trials=8)
    assert result.winner is not None
    evomerge.export("space", "best.yaml")
    assert checkpoint_digest(evomerge.merge("best.yaml", "out")) == result.winner.digest


def test_bfloat16_output(tiny_study: Study) -> None:
    def half(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["dtype"] = "bfloat16"

    result = evomerge.search(tiny_study(half), trials=8)
    assert result.winner is not None
    evomerge.export("space", "best.yaml")
    assert checkpoint_digest(evomerge.merge("best.yaml", "out")) == result.winner.digest


def test_a_launch_that_died_before_it_was_a_run_can_be_launched_again(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tiny_study()

    def die(folder: RunFolder, *rest: Any) -> None:
        (folder.path / ".environment.json.123").write_text("{")
        folder.space.write_text("half")
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr("evomerge.study.search.write_launch", die)
        with pytest.raises(SystemExit):
            evomerge.search(space, trials=6)
    assert RunFolder.named("space").path.is_dir()
    evomerge.search(space, trials=6)
    assert len(evomerge.status("space").search.trials) == 6


def test_a_run_that_died_before_its_study_was_made_can_be_resumed(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.study.run.store import Store

    space = tiny_study()

    def die(*rest: Any) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", die)
        with pytest.raises(SystemExit):
            evomerge.search(space, trials=6)
    assert evomerge.status("space").done == 0
    evomerge.resume("space")
    assert evomerge.status("space").done == 6


def test_a_run_with_a_trial_in_flight_behind_its_budget_is_finished(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.study import search as module
    from evomerge.study.trials import Trials

    end = Trials.end

    def die(self: Trials, trial: Any, result: Any) -> Any:
        if trial.number == 6:
            raise SystemExit("killed")
        return end(self, trial, result)

    with monkeypatch.context() as patch:
        patch.setattr(Trials, "end", die)
        with pytest.raises(SystemExit):
            evomerge.search(tiny_study(lambda space, fitness: fitness.update(pruning=False)), trials=8)
    first = evomerge.resume("space", trials=6)
    assert [t.number for t in evomerge.status("space").search.trials if t.state == "running"] == [6]

    def again(*rest: Any) -> None:
        raise AssertionError("a finished run is not released again")

    with monkeypatch.context() as patch:
        patch.setattr(module.holdout, "release", again)
        second = evomerge.resume("space", trials=6)
    assert second.holdout.best() == first.holdout.best()
    assert evomerge.resume("space", trials=7).search.n_finished == 7


def test_a_bad_storage_leaves_nothing(tiny_study: Study) -> None:
    space = tiny_study()
    with pytest.raises(InputError, match="--storage: there is no folder"):
        evomerge.search(space, storage="sqlite:////no/such/folder/x.db")
    assert not Path("runs").exists()
    evomerge.search(space, run="a", storage="sqlite:///s.db", trials=5)
    with pytest.raises(InputError, match="has a study 'a' already"):
        evomerge.search(space, run="other/a", storage="sqlite:///s.db", trials=5)


def test_changed_callable_code_is_noticed(tiny_study: Study) -> None:
    def custom(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["own"] = {"python": "mine:score", "data": "tasks/tiny_a.jsonl", "floor": 0.0}

    space = tiny_study(custom)
    space.with_name("mine.py").write_text(CALLABLE)
    evomerge.search(space, trials=6)
    space.with_name("mine.py").write_text(CALLABLE.replace("1 / 13", "1 / 2"))
    with pytest.raises(InputError, match=r"items\.own"):
        evomerge.resume("space", trials=8)


def test_a_failing_objective_fails_the_trial_only(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.study.run.evaluation import Criteria, TrialResult

    made = Criteria.result
    calls: list[int] = []

    def sometimes(self: Criteria, *arguments: Any) -> TrialResult:
        calls.append(1)
        if len(calls) in (6, 15):  # a searched trial, and the first finalist on the holdout
            raise TrialError("the geometric mean needs scores of at least 0")
        return made(self, *arguments)

    monkeypatch.setattr(Criteria, "result", sometimes)
    result = evomerge.search(tiny_study(lambda space, fitness: fitness.update(pruning=False)), trials=10)
    assert [t.number for t in result.search.trials if t.state == "failed"] == [5]
    assert [t.state for t in result.holdout.trials].count("failed") == 1
    assert evomerge.status("space").finished


def test_folders_may_have_an_at_sign(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    space = tiny_study()
    home = space.parent / "user@corp"
    home.mkdir()
    for name in ("models", "tasks", "space.yaml", "fitness.yaml"):
        (space.parent / name).rename(home / name)
    monkeypatch.chdir(home)
    evomerge.search("space.yaml", trials=6)
    evomerge.resume("space", trials=7)
    assert evomerge.export("space", allow_infeasible=True)


def test_the_same_model_twice(tiny_study: Study) -> None:
    def twice(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["sources"]["two"] = "models/../models/one"

    with pytest.raises(InputError, match=r"space.yaml:\d+: sources.two: two is the same checkpoint as one"):
        evomerge.search(tiny_study(twice))


def test_a_module_filter_that_matches_nothing(tiny_study: Study) -> None:
    def typo(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["modules"] = {"attention": "self_atn"}

    with pytest.raises(InputError, match=r"no tensor of the base has 'self_atn' in its name; did you mean 'self_attn'"):
        evomerge.search(tiny_study(typo))


def test_a_parent_that_failed_is_scored_again_on_resume(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Evaluator.evaluate
    broken = [True]

    def fails(self: Evaluator, recipe: Any, *rest: Any) -> Any:
        if broken[0] and "one" in str(recipe.models()[0]):
            raise TrialError("out of memory")
        return evaluate(self, recipe, *rest)

    monkeypatch.setattr(Evaluator, "evaluate", fails)
    with pytest.raises(InputError, match="one could not be scored"):
        evomerge.search(tiny_study(), trials=9)
    broken[0] = False
    result = evomerge.resume("space")
    assert {t.label for t in result.holdout.trials if t.is_parent} == {"base", "one", "two"}
    assert len(result.search.trials) == 9


def test_a_copy_of_a_parent_cannot_win(tiny_study: Study) -> None:
    def single(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        del space["sources"]["two"]
        space["genes"]["weight"]["per"] = ["layers"]

    result = evomerge.search(tiny_study(single), trials=8)
    uniform = next(t for t in result.search.trials if t.label == "uniform")
    one = next(t for t in result.search.trials if t.label == "one")
    assert uniform.digest == one.digest
    assert uniform not in result.search.merges()


def test_an_extended_run_is_unfinished_until_its_new_end(tiny_study: Study) -> None:
    evomerge.search(tiny_study(), trials=7)
    assert evomerge.status("space").finished
    with pytest.raises(KeyboardInterrupt):
        evomerge.resume("space", trials=12, observer=StopAfter(2))
    state = evomerge.status("space")
    assert not state.finished
    assert "the run has gone on since" in evomerge.export("space", allow_infeasible=True)


def test_best_yaml_is_mended_after_a_crash(tiny_study: Study) -> None:
    evomerge.search(tiny_study(), trials=8)
    folder = RunFolder.named("space")
    text = folder.best.read_text()
    folder.best.write_text("stale")
    evomerge.resume("space")
    assert folder.best.read_text() == text


def test_resume_from_another_folder(tiny_study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_study()
    run = Path("runs/space").absolute()
    evomerge.search("space.yaml", storage="sqlite:///s.db", trials=6, settings=["sources.two=models/two"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evomerge.resume(run, trials=7)
    assert evomerge.status(run).done == 7
    assert not list(Path().iterdir())


def test_a_moved_run_without_its_originals(tiny_study: Study) -> None:
    def custom(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["own"] = {"python": "mine:score", "data": "tasks/tiny_a.jsonl", "floor": 0.0}

    space = tiny_study(custom)
    space.with_name("mine.py").write_text(CALLABLE)
    evomerge.search(space, run="whole", trials=8)
    evomerge.search(space, run="cut", trials=6)
    for file in ("space.yaml", "fitness.yaml"):
        space.with_name(file).unlink()
    Path("runs/cut").rename("moved")
    evomerge.resume("./moved", trials=8)
    assert [t.digest for t in evomerge.status("./moved").search.trials] == [f[5] for f in facts("whole")]


def test_a_budget_of_time_alone(tiny_study: Study) -> None:
    def timed(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["budget"] = {"time": "2s"}

    result = evomerge.search(tiny_study(timed))
    assert sum(t.seconds["total"] for t in result.search.trials) >= 2
    count = len(result.search.trials)
    evomerge.resume("space")
    assert len(evomerge.status("space").search.trials) == count


def test_a_recipe_that_does_not_fit_fails_its_trial_only(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Evaluator.evaluate
    seen: list[Any] = []

    def sometimes(self: Evaluator, recipe: Any, *rest: Any) -> Any:
        seen.append(recipe)
        if len(seen) == 6:
            raise InputError("model.norm.weight is [8] in the recipe")
        return evaluate(self, recipe, *rest)

    monkeypatch.setattr(Evaluator, "evaluate", sometimes)
    result = evomerge.search(tiny_study(), trials=8)
    assert [t.number for t in result.search.trials if t.state == "failed"] == [5]
    assert len(result.search.trials) == 8
