"""The quickstart in full, as a newcomer runs it: real training, a real conflict, a search that resolves it."""

from __future__ import annotations

from pathlib import Path

import pytest

import evomerge
from evomerge.demo.run import copy_starter_files, next_run
from evomerge.merging.disk.stream import checkpoint_digest


@pytest.mark.slow
def test_the_average_misses_a_floor_and_the_search_clears_all(tmp_path: Path) -> None:
    done = evomerge.quickstart(tmp_path, trials=40)
    leaderboard = done.search.holdout
    rows = {t.label: t for t in leaderboard.trials if t.kind == "reference"}
    assert list(rows) == ["base", "shipping", "refunds", "catalog", "uniform"]
    for label, trial in rows.items():
        assert not leaderboard.outcome(trial).feasible, f"{label} clears every floor: there is no conflict"
    winner = done.search.winner
    assert winner is not None
    assert all(v.passed for v in leaderboard.verdicts(winner))
    assert done.recipe is not None
    assert done.checkpoint is not None
    assert done.recipe.is_file()
    assert checkpoint_digest(done.checkpoint) == winner.digest
    assert next_run(tmp_path) == (str(tmp_path / "runs/quickstart-2"), False)


def test_files_to_start_from_are_not_overwritten(tmp_path: Path) -> None:
    copy_starter_files(tmp_path)
    space = tmp_path / "search_spaces/quickstart.yaml"
    space.write_text("changed")
    copy_starter_files(tmp_path)
    assert space.read_text() == "changed"
    assert (tmp_path / "fitness/quickstart/shipping.yaml").is_file()
