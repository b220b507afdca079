"""Programs that ask an engine which dies meanwhile."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from evomerge.errors import TrialError
from evomerge.files.fitness_file import read_fitness
from evomerge.scoring.commands.command import CommandPass
from evomerge.scoring.commands.folder import CandidateFolder

PROGRAM = """
import json, sys

url, items, out = sys.argv[1:]
json.dump({json.loads(line)["id"]: float(url) for line in open(items)}, open(out, "w"))
"""


def asked(folder: Path, *urls: str) -> CommandPass:
    """A slice whose engine has these addresses, one after the other; a program scores items by the address."""
    (folder / "ask.py").write_text(PROGRAM)
    (folder / "items.jsonl").write_text("".join(json.dumps({"id": f"q{n}"}) + "\n" for n in range(4)))
    command = f"{sys.executable} ask.py {{url}} {{items}} {{scores}}"
    (folder / "fitness.yaml").write_text(json.dumps({"slices": {"c": {"command": command, "data": "items.jsonl"}}}))
    fitness = read_fitness(folder / "fitness.yaml")
    left = iter(urls)
    engine: Any = SimpleNamespace(url=lambda: next(left), lived=lambda url, seconds: next(left) == url)
    scratch = folder / "scratch"
    files: Any = SimpleNamespace(scratch=lambda written: scratch.mkdir() or scratch)
    return CommandPass(fitness, fitness.slices["c"], cast(CandidateFolder, files), engine)


def test_scores_of_a_program_whose_engine_died_do_not_count(tmp_path: Path) -> None:
    found = asked(tmp_path, "0", "1", "1", "1").run("all")
    assert found.value == 1.0


def test_one_that_dies_again_costs_the_candidate(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="vLLM has died twice while python"):
        asked(tmp_path, "0", "1", "1", "2").run("all")
