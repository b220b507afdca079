"""A study in a notebook: its best trials in the metrics' own directions, its table, its figures."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.errors import InputError
from evomerge.recipe.mergekit import recipe_from_data
from tests.report.page.made import MadeRun

Study = Callable[..., Path]


def losses(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    """Slice a is a metric where lower is better."""
    task = Path("tasks/tiny_a.yaml")
    task.write_text(task.read_text().replace("metric: acc", "metric: brier_score"))
    fitness["slices"]["a"] = {"task": "tiny_a", "metric": "brier_score", "floor": {"of": "base", "margin": 0.5}}


class Cells(HTMLParser):
    """The texts of a table's cells, and the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_study_of_a_search_is_that_of_its_run(tiny_study: Study) -> None:
    study = evomerge.search(tiny_study(losses), trials=8)
    assert isinstance(study, evomerge.Study)
    again = evomerge.open_run("space")
    assert isinstance(again, evomerge.Study)
    assert again.trials == study.trials
    assert again.best == study.best
    assert again._repr_html_() == study._repr_html_()
    assert again.trials_dataframe().equals(study.trials_dataframe())


def test_scores_have_the_metrics_own_direction(tiny_study: Study) -> None:
    study = evomerge.search(tiny_study(losses), trials=8)
    base = study.trial(0)
    assert base.name == "base"
    assert base.scores["a"] == -study.search.trials[0].scores["a"] > 0
    assert base.margins["a"] == pytest.approx(0.5)
    best = study.best
    assert best is not None
    assert study.winner is not None
    assert best.number == study.winner.number
    assert best.feasible
    assert best.holdout["a"] == -study.winner.scores["a"]
    import yaml

    assert recipe_from_data([*yaml.safe_load_all(best.recipe)]).id == study.winner.recipe_id
    with pytest.raises(KeyError):
        study.trial(99)


def test_a_front_is_its_trials(tiny_study: Study) -> None:
    def pareto(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["objective"] = "pareto"
        space["optimizer"] = {"name": "nsga-ii", "seed": 3, "population": 4, "warm_start": False}

    study = evomerge.search(tiny_study(pareto), trials=10)
    assert [trial.number for trial in study.front] == [trial.number for trial in study.search.front()]
    assert study.front
    assert evomerge.open_run("space").front == study.front


def test_the_table_says_how_it_ended(tiny_study: Study) -> None:
    study = evomerge.search(tiny_study(), trials=8)
    cells = Cells(study._repr_html_())
    text = " ".join(cells.texts)
    for word in ("space", "winner", "base", "one", "two", "uniform", "floor", "passes", "acc"):
        assert word in text
    assert cells.tags.count("tr") == 2 + len([t for t in study.holdout.trials if t.kind == "reference"]) + (
        study.winner is not None and study.winner.kind != "reference"
    )


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(tiny_study: Study) -> None:
    class Ends(evomerge.Observer):
        def trial_finished(self, trial: Any, leaderboard: Any) -> None:
            if trial.number == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evomerge.search(tiny_study(), trials=8, observer=Ends())
    study = evomerge.open_run("space")
    assert len(study.trials) == 6
    assert "6 trials have ended" in study._repr_html_()
    assert study.best is None or study.best.feasible
    assert all(not trial.holdout for trial in study.trials)


def test_names_from_outside_are_escaped(tiny_study: Study) -> None:
    def hostile(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["<img src=x>"] = fitness["slices"].pop("a")

    study = evomerge.search(tiny_study(hostile), trials=6)
    html = study._repr_html_()
    assert "img" not in Cells(html).tags
    assert "&lt;img src=x&gt;" in html
    pytest.importorskip("plotly", reason="needs plotly")
    assert study.plot_slices("<img src=x>", "b").layout.xaxis.title.text == "&lt;img src=x&gt;"


def test_figures_hold_the_trials(tiny_study: Study) -> None:
    pytest.importorskip("plotly", reason="needs plotly")
    study = evomerge.search(tiny_study(losses), trials=8)
    points = {
        (x, y)
        for trace in study.plot_objective().data
        if trace.mode == "markers"
        for x, y in zip(trace.x, trace.y, strict=True)
    }
    assert points == {(trial.number, trial.objective) for trial in study.trials}
    points = {(x, y) for t in study.plot_slices("a", "b").data for x, y in zip(t.x, t.y, strict=True)}
    assert points == {(trial.scores["a"], trial.scores["b"]) for trial in study.trials}
    [parallel] = study.plot_parallel().data
    searched = [trial for trial in study.trials if trial.genome]
    assert [axis.label for axis in parallel.dimensions][-2:] == ["a", "b"]
    assert all(len(axis["values"]) == len(searched) for axis in parallel.dimensions)
    [heat] = study.plot_weights(searched[0].number).data
    assert [*heat.y] == ["one", "two"]
    assert {value for row in heat.z for value in row} == {v for k, v in searched[0].genome.items() if "weight" in k}
    with pytest.raises(InputError, match="no slice 'c'"):
        study.plot_slices("c")
    with pytest.raises(InputError, match="no gene 'wait'; use one of: weight"):
        study.plot_parallel(["wait"])
    with pytest.raises(InputError, match="no gene 'density'"):
        study.plot_weights(searched[0].number, "density")


@pytest.mark.parametrize(("winner", "label"), [(True, "winner: trial "), (False, "closest: trial ")])
def test_the_table_ends_with_the_best_merge(winner: bool, label: str, tmp_path: Path) -> None:
    page = Cells(evomerge.open_run(MadeRun(tmp_path, winner=winner).make())._repr_html_())
    assert [text for text in page.texts if text.startswith(label) and "passes" not in text]
