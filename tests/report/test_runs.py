"""`evomerge status`: what was measured stands before what is predicted; a run goes on, stopped, or is finished."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import evomerge
from evomerge.cli import main
from evomerge.report.runs import runs_table, status_tables, status_words
from evomerge.study.run.driver import Driver
from tests.conftest import INTERRUPTIBLE
from tests.report.examples import Made

Study = Callable[..., Path]


def test_predicted_scores_stand_last_and_are_marked() -> None:
    state = Made().status()
    search, holdout = status_tables(state)
    states = [t.state for t in state.search.ranked() if t.kind == "search" and t.state != "failed"]
    assert "pruned" in states[: states.count("complete")], "one that is predicted to be good"
    names = [row.heads[0] for row in search.rows]
    predicted = [row for row in search.rows if row.cells[-1].text == "pruned"]
    assert search.rows[-len(predicted) :] == predicted
    assert len(predicted) == 2
    for row in search.rows:
        marked = [cell.text.lstrip("✗ ").startswith("~") for cell in row.cells[:-1]]
        assert all(marked) if row in predicted else not any(marked)
    assert "~: predicted from a part of the items; a pruned trial cannot win" in search.legend
    assert sum(name.startswith("winner: ") for name in names) == 1
    assert sum(row.heads[0].startswith("winner: ") for row in holdout.rows) == 1
    assert holdout.title.startswith("Scores on the holdout split")


def test_the_first_line_says_what_to_do() -> None:
    made = Made()
    assert "stopped; 11 of 60 trials" in status_words(made.status())
    assert "`evomerge resume " in status_words(made.status())
    running = status_words(made.status(Driver(7, "host", "2024-05-06 07:08:09")))
    assert ": running, process 7 on host since 2024-05-06 07:08:09; 11 of 60 trials" in running
    assert "resume" not in running
    finished = status_words(made.status(finished=True))
    assert ": finished; 11 of 60 trials" in finished
    assert "winner: " in finished
    table = runs_table([made.status(), made.unreadable])
    assert table.legend == ["stopped: go on with `evomerge resume RUN`"]
    assert runs_table([made.status(finished=True)]).legend == []


@pytest.mark.slow
def test_status_of_a_real_search(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """While it runs, killed, and finished."""
    tiny_study()
    command = [*INTERRUPTIBLE, "search", "space.yaml", "--trials", "2000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("[6/"))
        assert main(["status"]) == 0
        assert f"running, process {process.pid} on " in capsys.readouterr().out
        assert main(["status", "space", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["state"], told["driver"]["process"], told["winner"]) == ("running", process.pid, None)
        process.kill()
    state = evomerge.status("space")
    assert main(["status", "space"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line == f"run space: stopped; {state.done} of 2000 trials, go on with `evomerge resume space`"
    assert main(["resume", "space", "--trials", str(state.done)]) in (0, 1)
    assert main(["status", "space"]) == 0
    assert f"run space: finished; {evomerge.status('space').done} of " in capsys.readouterr().out
