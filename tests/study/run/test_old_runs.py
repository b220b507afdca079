"""Runs of an older version (commit 201b3fa) are resumed, ranked, compared and exported with the results that this
version gave: a race in flight under CMA-ES, the default optimizer, and a start along the gradient.

`data/old_runs.tar.xz` holds models, tasks, spaces, the runs as they were left, and what the older version printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli import main
from evomerge.recipe.mergekit import recipe_from_data
from evomerge.study.after.status import status

DATA = Path(__file__).parent / "data" / "old_runs.tar.xz"
RUNS = ("racing", "default", "gradient")
PLACE = "@STUDY@"
"""Stands in the files for the folder of the study."""


RENAMED = {"stopped": "pruned"}
DIFFERENT = ("run", "fitness", "recipe_id", "seconds")
"""What depends on the folder of the study, or on the time."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with tarfile.open(DATA) as archive:
        archive.extractall(folder, filter="data")
    folder /= "old_runs"
    for file in folder.rglob("*"):
        if file.suffix in (".yaml", ".json", ".journal"):
            file.write_text(file.read_text().replace(PLACE, str(folder)))
    for journal in folder.rglob("study.journal"):
        journal.write_text("".join(f"{with_own_id(line)}\n" for line in journal.read_text().splitlines()))
    return folder


def with_own_id(line: str) -> str:
    """A line of the journal, with the id that a recipe has in this folder: paths are a part of it."""
    entry = json.loads(line)
    if "recipe" in entry.get("user_attrs", {}):
        entry["user_attrs"]["recipe_id"] = recipe_from_data(entry["user_attrs"]["recipe"]).id
    return json.dumps(entry)


def same(data: Any) -> Any:
    """The part of an answer that does not depend on folder, time and processor, in today's words."""
    if isinstance(data, dict):
        return {key: same(value) for key, value in data.items() if key not in DIFFERENT}
    if isinstance(data, list):
        return [same(value) for value in data]
    if isinstance(data, float):
        return float(f"{data:.12g}")
    return RENAMED.get(data, data) if isinstance(data, str) else data


def known(printed: Any, expected: Any) -> Any:
    """The answer without the keys that are new since."""
    if isinstance(printed, dict) and isinstance(expected, dict):
        return {key: known(value, expected[key]) for key, value in printed.items() if key in expected}
    if isinstance(printed, list) and isinstance(expected, list) and len(printed) == len(expected):
        return [known(value, other) for value, other in zip(printed, expected, strict=True)]
    return printed


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, study: Path) -> tuple[str, dict[int, str]]:
    """The name of a run that was resumed to 36 trials, in the study's folder, and how its trials had ended before; what
    the older version printed at its end is beside it."""
    name = str(request.param)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(study)
        before = {trial.number: trial.state for trial in status(name).search.trials}
        assert len(before) == 24 + 12 * (name == "racing")
        assert ("running" in before.values()) == (name == "racing")
        # In a process of its own, as the data was made: with one thread, and numpy's kernels for one kind of processor,
        # as others round otherwise.
        command = [sys.executable, "-m", "evomerge", "resume", name, "--trials", "36"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr
    return name, before


def asked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*arguments, "--json"]) in (0, 1)
    return json.loads(capsys.readouterr().out)


def test_an_old_run_goes_on_behind_what_had_ended(
    run: tuple[str, dict[int, str]], study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What had ended is as the older version printed it. What comes after is decided by today's rules: of pruning, of
    who is asked on the holdout, and of where a search looks; a generation in flight has the genomes that it had."""
    name, before = run
    monkeypatch.chdir(study)
    printed = asked(["status", name], capsys)
    expected = json.loads((study / "expected" / f"{name}.status.json").read_text())
    assert (printed["finished"], len(printed["search"]["trials"])) == (True, 36)
    assert same(printed["search"]["floors"]) == same(expected["search"]["floors"])
    for trial, then in zip(printed["search"]["trials"], expected["search"]["trials"], strict=True):
        state = before.get(trial["trial"])
        if state in ("complete", "failed"):
            assert same(known(trial, then)) == same(then)
        elif state is not None:  # a pruned one may have been scored in full, or not
            assert same(trial["genome"]) == same(then["genome"])


def test_an_old_run_is_ranked_compared_and_exported(
    run: tuple[str, dict[int, str]], study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _ = run
    monkeypatch.chdir(study)
    ranked = asked(["rank", name, "--fitness", f"{name}.new.yaml"], capsys)
    expected = json.loads((study / "expected" / f"{name}.rank.json").read_text())
    assert same(ranked["search"]["floors"]) == same(expected["search"]["floors"])
    winner = status(name).winner
    assert winner is not None
    compared = asked(["compare", name, str(winner.number), "base"], capsys)
    assert compared["slices"].keys() == winner.scores.keys()
    assert main(["export", name]) == 0
    assert f"# digest of the weights {winner.digest}" in capsys.readouterr().out
