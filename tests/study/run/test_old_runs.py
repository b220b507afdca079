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

FLIGHT, PROMOTED = 24, (12, 14, 19, 21)
"""The first trial of the race in flight, and pruned ones before it that either version scores in full at the end."""

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
def run(request: pytest.FixtureRequest, study: Path) -> str:
    """The name of a run that was resumed to 36 trials, in the study's folder; what the command printed is beside it."""
    name = str(request.param)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(study)
        before = status(name).search.trials
        assert len(before) == 24 + 12 * (name == "racing")
        assert any(t.state == "running" for t in before) == (name == "racing")
        # In a process of its own, as the data was made: with one thread, and numpy's kernels for one kind of processor,
        # as others round otherwise.
        command = [sys.executable, "-m", "evomerge", "resume", name, "--trials", "36"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        check_rounding(name, study)
    return name


def check_rounding(run: str, study: Path) -> None:
    """The genome of the last trial is nearly as it was; where it is not exactly so, no more can be compared."""
    expected = json.loads((study / "expected" / f"{run}.status.json").read_text())["search"]["trials"]
    genomes = {trial["trial"]: trial["genome"] for trial in expected}
    for trial in status(run).search.trials:
        then = genomes[trial.number]
        for key, value in trial.genome.items():
            assert value == (then[key] if isinstance(value, str) else pytest.approx(then[key], rel=1e-3, abs=1e-3))
        if trial.genome != then:
            pytest.skip("this processor rounds gradients otherwise than the one that made the data")


@pytest.mark.parametrize("command", ["status", "rank", "compare"])
def test_an_old_run_goes_on_as_it_would_have(
    run: str, study: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study)
    more = {"rank": ["--fitness", f"{run}.new.yaml"], "compare": ["base"]}.get(command, [])
    assert main([command, run, *more, "--json"]) in (0, 1)
    printed = json.loads(capsys.readouterr().out)
    expected = json.loads((study / "expected" / f"{run}.{command}.json").read_text())
    if run == "racing":
        printed, expected = (settled(answer) for answer in (printed, expected))
    assert same(known(printed, expected)) == same(expected)


def settled(answer: dict[str, Any]) -> dict[str, Any]:
    """What an answer about the run with a race in flight says of what had ended before. Other rules decide since who
    of that generation is scored on how many items, and so which of the pruned ones are among the best at the end; what
    is proposed and the winner are the same."""
    if "search" not in answer:
        return answer
    trials = answer["search"]["trials"]
    complete = [t for t in trials if t["trial"] < FLIGHT and t["state"] == "complete" and t["trial"] not in PROMOTED]
    proposed = [(t["trial"], t["label"], t["genome"]) for t in trials if "genome" in t]
    return {"winner": answer.get("winner"), "complete": complete, "proposed": proposed}


def test_an_old_run_exports_the_same_recipe(
    run: str, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study)
    assert main(["export", run]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    expected_first, *expected = (study / "expected" / f"{run}.export.yaml").read_text().splitlines()
    assert lines == expected
    assert first.partition(", recipe ")[0] == expected_first.partition(", recipe ")[0]
