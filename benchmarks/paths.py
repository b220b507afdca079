"""Searches of weights, of paths through the layers, of both, and of fewer layers, at equal budgets.

    python benchmarks/paths.py SPECIALISTS --out DIR [--trials 100] [--seeds 0-1] [--only quickstart]

SPECIALISTS holds `base`, `shakespeare`, `gsm8k`, `french` and `items/` (real, small checkpoints; bits per byte, floors
at the base's score and 0.02). Beside them the quickstart's models are trained (accuracies, floors at the base's).
For each testbed and seed, each a command of its own with one thread:

- weights: task arithmetic, a weight for each source and layer group, the default optimizer
- path: slots of all sources' layers, shared scales; without and with the weights' winner in front (`--from`)
- blocks: the smaller encoding, four blocks
- both: three blocks, a weight for each source and block
- pruned: the weights' winner alone, one layer less than it has, without floors

A search that ended is not run again. Prints, on the holdout items, the mean objective of base, best source, uniform
average and of each search's winner, its layers, and in how many seeds it had one.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from _quickstart import items, models
from _quickstart import write_files as write_quickstart
from _searches import Ended, search
from rich.console import Console
from rich.table import Table
from specialists import write_files as write_specialists

from evomerge.checkpoints.checkpoint import Checkpoint

_FLOW = {"space": "dataflow", "scales": {"form": "shared", "low": 0.7, "high": 1.4}}
_GONE = ("genes", "layers")
_WEIGHT = {"low": 0.0, "high": 1.2, "init": 0.4, "per": ["sources", "layers"]}


def spaces(depth: int) -> dict[str, tuple[Mapping[str, Any], str | None]]:
    """The keys of each search's space file that differ from the weights', and the search that it begins with. Keys that
    mean nothing there are None."""
    gone = dict.fromkeys(_GONE)
    pruned = {**gone, "space": "dataflow", "path": ["winner"], "max_layers": depth - 1, "scales": "none"}
    return {
        "weights": ({}, None),
        "path": ({**gone, **_FLOW, "max_layers": depth + 3}, None),
        "path from weights": ({**gone, **_FLOW, "max_layers": depth + 3}, "weights"),
        "blocks": ({**gone, "space": "dataflow", "blocks": 4, "max_layers": depth + 3}, None),
        "both": ({"space": "both", "blocks": 3, "layers": None, "max_layers": depth + 3}, None),
        "pruned": (pruned, "weights"),
    }


def testbed(name: str, root: Path, specialists: Path, trials: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The space and the fitness file of its weights, with paths from anywhere, and the number of layers."""
    root.mkdir(parents=True, exist_ok=True)
    if name == "specialists":
        space = write_specialists(root, specialists, trials)
    else:
        models(root)
        space = write_quickstart(root / "files", root, items(root), {}, trials, floor={"of": "base", "margin": 0.0})
    data = yaml.safe_load(space.read_text())
    fitness = yaml.safe_load((space.parent / data["fitness"]).read_text())
    fitness["include"] = [str((space.parent / folder).absolute()) for folder in fitness["include"]]
    data.pop("optimizer", None)
    data["genes"] = {
        "method": "task_arithmetic",
        "weight": _WEIGHT | ({"init": 0.1, "high": 1.0} if name == "specialists" else {}),
    }

    return data, fitness, Checkpoint.open(data["base"]).layers


def run(place: Path, space: Mapping[str, Any], fitness: Mapping[str, Any], seed: int, before: Path | None) -> Ended:
    """A search in `place`."""

    def write() -> Path:
        place.mkdir(parents=True, exist_ok=True)
        (place / "fitness.yaml").write_text(yaml.safe_dump(dict(fitness), sort_keys=False))
        kept = {key: value for key, value in space.items() if value is not None}
        (place / "space.yaml").write_text(yaml.safe_dump({**kept, "fitness": "fitness.yaml"}, sort_keys=False))
        return place / "space.yaml"

    begin = [] if before is None else ["--from", str(before / "run")]
    return search(place, write, "--seed", str(seed), *begin)


def searched(name: str, out: Path, specialists: Path, trials: int, seeds: list[int]) -> dict[str, list[Ended]]:
    """All searches of a testbed, by name. Those that begin with a winner are left out where there is none."""
    data, fitness, depth = testbed(name, (out / name / "models").absolute(), specialists, trials)
    ended: dict[str, list[Ended]] = {}
    for seed in seeds:
        for kind, (keys, begin) in spaces(depth).items():
            before = None if begin is None else out / name / f"{begin}-{seed}"
            if begin is not None and ended[begin][-1].release.winner is None:
                continue
            free = copy.deepcopy(fitness)
            if kind == "pruned":
                for spec in free["slices"].values():
                    spec.pop("floor", None)
            place = (out / name / f"{kind.replace(' ', '-')}-{seed}").absolute()
            ended.setdefault(kind, []).append(run(place, {**data, **keys}, free, seed, before))
            print(f"{name} {kind} {seed}: {_objective(ended[kind][-1], None)}", flush=True)
    return ended


def _objective(ended: Ended, label: str | None) -> float | None:
    """The objective on the holdout of a reference, or (None) of the winner."""
    board = ended.release.leaderboard
    trial = ended.release.winner if label is None else next((t for t in board.trials if t.label == label), None)
    return None if trial is None else board.outcome(trial).objective


def _layers(ended: Ended) -> str:
    """The layers of the winner."""
    winner = ended.release.winner
    if winner is None or winner.recipe is None:
        return ""
    slices = winner.recipe.output.all_slices
    spans = [slice_.inputs[0].layers for slice_ in slices]
    return "" if None in spans else str(sum(span[1] - span[0] for span in spans if span))


def report(name: str, ended: Mapping[str, list[Ended]], console: Console) -> None:
    table = Table(
        "model", "seeds with a winner", "objective", "layers", title=f"{name}: on the holdout, higher is better"
    )
    first = ended["weights"][0]
    for trial in first.release.leaderboard.trials:
        if trial.label and trial is not first.release.winner:
            value = first.release.leaderboard.outcome(trial).objective
            table.add_row(trial.label, "", f"{value:+.4f}", "")
    for kind, runs in ended.items():
        values = [value for run_ in runs if (value := _objective(run_, None)) is not None]
        mean = f"{fmean(values):+.4f}" if values else ""
        table.add_row(kind, f"{len(values)} of {len(runs)}", mean, ", ".join(filter(None, map(_layers, runs))))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specialists", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="where models and runs are kept")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", default="0-1", help="first and last")
    parser.add_argument("--only", choices=["specialists", "quickstart"])
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    seeds = list(range(int(first), int(last or first) + 1))
    console = Console(width=110)
    for name in ("specialists", "quickstart"):
        if options.only in (None, name):
            report(name, searched(name, options.out, options.specialists.absolute(), options.trials, seeds), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
