"""Studies whose scores cost nothing, so that hundreds of damaged ones can be resumed: the true search on true files
with a scorer that is a function of the recipe in place of the evaluator."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _free import Answers, FreeExecutor, write_study

FREE_KINDS = ("racing", "cma-es", "pareto")
SLICES, ITEMS = ("a", "b"), 40


def write_free_study(folder: Path, models: Path, kind: str, trials: int = 20) -> None:
    """`space.yaml` and `fitness.yaml` of a kind of study."""
    optimizer = {"name": "nsga-ii" if kind == "pareto" else "cma-es", "seed": 3, "population": 8}
    fitness = {
        "include": ["tasks"],
        "objective": "pareto" if kind == "pareto" else "mean",
        "pruning": kind == "racing",
        "slices": {name: {"task": f"tiny_{name}", "metric": "acc", "floor": 0.1} for name in SLICES},
    }
    write_study(folder, models / "base", {n: models / n for n in ("one", "two")}, optimizer, trials, fitness)


class Drawn(FreeExecutor):
    """Scores recipes by their texts: the same for the same recipe, item by item."""

    def answers(self, job: Any) -> Answers:
        from evomerge.recipe.recipe import canonical, to_data

        # Not by its id: that depends on where the models are.
        text = canonical(to_data(job.recipe)).replace(str(Path(job.recipe.models()[0]).parent), "")
        skills = {name: 0.3 + 0.5 * _drawn(text, name) for name in self.info.slices}
        return lambda name, _, item: _drawn(text, name, job.split, item) < skills[name]


def _drawn(*parts: str) -> float:
    """A number in [0, 1) that is a function of the texts."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:6], "big") / 2**48


@contextmanager
def free_executor(plan: Any, *_: Any) -> Iterator[Drawn]:
    """In place of `study.search.executor_of`."""
    yield Drawn(plan, ITEMS)


# Damage. Each function changes a run's folder and says in words what it did.


def cut_journal(run: Path, draw: random.Random) -> str:
    journal = run / "study.journal"
    content = journal.read_bytes()
    at = draw.randrange(len(content))
    journal.write_bytes(content[:at])
    return f"journal cut at byte {at} of {len(content)}"


def flip_journal(run: Path, draw: random.Random) -> str:
    journal = run / "study.journal"
    if draw.random() < 0.5:  # near the end of a killed search: the damage of most power cuts
        cut_journal(run, draw)
    content = bytearray(journal.read_bytes())
    if not content:
        return "journal empty"
    at = draw.randrange(max(0, len(content) - 2000) if draw.random() < 0.5 else 0, len(content))
    content[at] ^= 1 << draw.randrange(8)
    journal.write_bytes(content)
    return f"bit of byte {at} of the journal's {len(content)}"


def flip_items(run: Path, draw: random.Random) -> str:
    file = draw.choice(sorted((run / "items").iterdir()))
    content = bytearray(file.read_bytes())
    at = draw.randrange(len(content))
    content[at] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return f"bit of byte {at} of {file.name}"


def lose_items(run: Path, draw: random.Random) -> str:
    files = sorted((run / "items").iterdir())
    file, how = draw.choice(files), draw.choice(["emptied", "halved", "missing", "a folder", "all missing"])
    if how == "all missing":
        shutil.rmtree(run / "items")
        return "items/ missing"
    if how in ("missing", "a folder"):
        file.unlink()
        if how == "a folder":
            file.mkdir()
    else:
        file.write_bytes(file.read_bytes()[: 0 if how == "emptied" else file.stat().st_size // 2])
    return f"{file.name} {how}"
