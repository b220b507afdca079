"""Polish: the best merge in other forms, as trials that the optimizer is not told of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.study import polish
from evomerge.study.after.transfer import proposed
from evomerge.study.run.trial import Trial
from evomerge.study.trials import Trials

Study = Callable[..., Path]
TRIALS = 12
SPECTRAL = ["isotropy 0.25", "isotropy 0.5", "isotropy 1", "svc alpha 0.5", "svc alpha 1"]
COUNT = len(SPECTRAL)


def with_polish(value: Any, trials: int = TRIALS, **genes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["polish"] = value
        space["budget"]["trials"] = trials
        space["genes"].update(genes)
        fitness["pruning"] = False

    return change


def of_run(run: str) -> list[Trial]:
    return list(evomerge.status(run).search.trials)


def told(run: str) -> list[tuple[Any, ...]]:
    return [(t.number, t.label, t.genome, t.recipe_id, t.digest, dict(t.scores), t.state) for t in of_run(run)]


def polished(run: str) -> list[Trial]:
    return [trial for trial in of_run(run) if trial.polished is not None]


def forms(trials: list[Trial]) -> list[str]:
    return [trial.label.partition(", ")[2] for trial in trials]


def test_the_last_trials_are_other_forms_of_the_best(tiny_study: Study) -> None:
    evomerge.search(tiny_study(with_polish(False, TRIALS - COUNT)), run="plain")
    result = evomerge.search(tiny_study(with_polish(True)), run="polished")
    assert len(result.search.trials) == TRIALS
    assert told("polished")[:-COUNT] == told("plain")  # the optimizer proposes what it would without
    found, plain = polished("polished"), evomerge.status("plain")
    assert forms(found) == SPECTRAL
    best = plain.search.merges()[0]
    assert {trial.polished for trial in found} <= {trial.number for trial in plain.search.trials}
    assert all(trial.genome == found[0].genome for trial in found)
    assert len({best.digest, *(trial.digest for trial in found)}) == 1 + COUNT
    assert [trial.recipe.output.method for trial in found] == ["isotropy"] * 3 + ["svc"] * 2
    assert found[1].recipe.output.parameters["isotropy"] == 0.5
    assert all(trial.state == "complete" and trial.ranked for trial in found)
    again = evomerge.resume("polished")
    assert [t.number for t in again.search.trials] == [t.number for t in result.search.trials]


def test_killed_between_two_forms_it_goes_on_as_if_it_had_not_been(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tiny_study(with_polish(True))
    evomerge.search(space, run="whole")
    evaluate = Trials.evaluate

    def dies(self: Trials, trial: Trial) -> Any:
        if trial.label.endswith("svc alpha 0.5"):
            raise KeyboardInterrupt
        return evaluate(self, trial)

    with monkeypatch.context() as patched:
        patched.setattr(Trials, "evaluate", dies)
        with pytest.raises(KeyboardInterrupt):
            evomerge.search(space, run="parts")
    assert [t.state for t in polished("parts")] == ["complete"] * 3 + ["running"]
    evomerge.resume("parts")
    assert told("parts") == told("whole")


@pytest.mark.slow
def test_a_larger_budget_searches_on_and_polishes_again(tiny_study: Study) -> None:
    evomerge.search(tiny_study(with_polish(True)), run="run")
    evomerge.resume("run", trials=40)
    first, second = TRIALS - COUNT, 35
    numbers = [trial.number for trial in polished("run")]
    assert numbers[:COUNT] == list(range(first, TRIALS))
    assert set(numbers[COUNT:]) <= set(range(second, 40))
    evomerge.search(tiny_study(with_polish(False, 30)), run="plain")
    assert [t.genome for t in of_run("run") if t.is_proposed] == [t.genome for t in of_run("plain") if t.is_proposed]


@pytest.mark.slow
@pytest.mark.parametrize(("trials", "count"), [(49, 0), (50, COUNT)])
def test_by_itself_it_takes_a_tenth_at_most(tiny_study: Study, trials: int, count: int) -> None:
    evomerge.search(tiny_study(with_polish("auto", trials)), run="run")
    assert len(polished("run")) == count
    assert len(of_run("run")) == trials


def test_weights_that_do_not_differ_by_layers_rise_with_depth(tiny_study: Study) -> None:
    weight = {"low": 0.0, "high": 1.0, "init": 0.4, "per": ["sources"]}
    evomerge.search(tiny_study(with_polish(True, weight=weight)), run="run")
    found = polished("run")
    assert forms(found) == [*SPECTRAL, "weights that rise by 0.3"]
    for source in found[-1].recipe.output.slices[0].inputs:
        name = Path(source.model).name
        value = found[-1].genome.get(f"weight[{name}]")
        if isinstance(value, float):
            assert source.parameters["weight"] == pytest.approx([0.7 * value, 1.3 * value])


def test_what_takes_too_long_is_left_out(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polish, "AFFORDED", {"cpu": 10.0, "cuda": 10.0})
    weight = {"low": 0.0, "high": 1.0, "init": 0.4, "per": ["sources"]}
    evomerge.search(tiny_study(with_polish(True, weight=weight)), run="run")
    assert forms(polished("run")) == ["weights that rise by 0.3"]
    assert len(of_run("run")) == TRIALS


def test_other_methods_have_no_other_forms(tiny_study: Study) -> None:
    evomerge.search(tiny_study(with_polish(True, method="ties")), run="run")
    assert not polished("run")
    assert len(of_run("run")) == TRIALS


def test_another_search_begins_with_the_genome_that_was_polished(tiny_study: Study) -> None:
    space = tiny_study(with_polish(True))
    evomerge.search(space, run="first")
    form = polished("first")[1]
    evomerge.search(space, run="second", from_run=f"first:{form.number}")
    origin = proposed(evomerge.status("first"), form)
    beginning = next(t for t in of_run("second") if t.is_proposed)
    assert (beginning.genome, beginning.digest) == (origin.genome, origin.digest)


def test_it_is_exported_as_it_was_scored(tiny_study: Study, tmp_path: Path) -> None:
    evomerge.search(tiny_study(with_polish(True)), run="run")
    form = polished("run")[1]
    evomerge.export("run", tmp_path / "form.yaml", trial=form.number, checkpoint=tmp_path / "form")
    assert "merge_method: isotropy" in (tmp_path / "form.yaml").read_text()
    references = {"base": str(tmp_path / "models/base")}
    scored = evomerge.evaluate(
        tmp_path / "form", fitness=tmp_path / "fitness.yaml", split="search", references=references
    )
    assert scored.digest == form.digest


def test_a_wrong_value_is_said(tiny_study: Study) -> None:
    with pytest.raises(evomerge.InputError, match="polish"):
        evomerge.search(tiny_study(with_polish("always")))
