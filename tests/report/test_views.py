"""What people see: a line per trial on a pipe, a panel on a terminal, tables in the metrics' own direction."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

import evomerge
from evomerge.report.live import LineView, LiveView, view
from evomerge.report.results import result_table
from evomerge.report.runs import status_tables

Study = Callable[..., Path]


def rendered(thing: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


def lower_is_better(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    """Makes slice b a text whose bits per byte must not rise by more than 5 above the base's."""
    import yaml

    task = yaml.safe_load(Path("tasks/tiny_b.yaml").read_text())
    for key in ("doc_to_choice", "target_delimiter"):
        del task[key]
    task |= {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "question"}
    task["metric_list"] = [{"metric": "bits_per_byte"}]
    Path("tasks/tiny_b.yaml").write_text(yaml.safe_dump(task))
    fitness["slices"]["b"] = {"task": "tiny_b", "metric": "bits_per_byte", "floor": {"of": "base", "margin": 5.0}}


def test_lines_for_pipes(tiny_study: Study) -> None:
    stream = io.StringIO()
    with LineView(Console(file=stream, width=200)) as observer:
        evomerge.search(tiny_study(lower_is_better), trials=7, observer=observer)
    lines = stream.getvalue().splitlines()
    trial = next(line for line in lines if line.startswith("[6/7]"))
    assert "passes | best feasible" in trial
    assert "-" not in trial.split("|")[0].split("b ")[1], "bits per byte are shown as the positive number they are"
    assert "left 0:00:0" in trial
    assert any(line.startswith("holdout [1/") for line in lines)


def test_panel_for_terminals(tiny_study: Study) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
    observer = view(console)
    assert isinstance(observer, LiveView)
    with observer:
        evomerge.search(tiny_study(), trials=7, observer=observer)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("run space", "4/4", "7/7", "best: ", "floor", "above it", "scoring on the holdout items"):
        assert part in drawn


def test_tables_show_floors_in_the_direction_of_the_metric(tiny_study: Study) -> None:
    result = evomerge.search(tiny_study(lower_is_better), trials=7)
    drawn = rendered(result_table(result))
    assert "≤" in drawn
    assert "≥ 0.000" in drawn
    assert "+ 5" in drawn
    assert "uniform average" in drawn
    assert "Scores on the search split" in rendered(status_tables(evomerge.status("space"))[0])


def test_other_tools_can_read_the_study(tiny_study: Study) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    evomerge.search(tiny_study(), trials=8)
    storage = JournalStorage(JournalFileBackend("runs/space/study.journal"))
    study = optuna.load_study(study_name="space", storage=storage)
    assert len(study.trials) == 8
    assert "weight[one,0]" in study.trials[5].params
    assert study.best_value == max(t.value for t in study.trials)
