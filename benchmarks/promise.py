"""What a winner is worth on items that nothing has seen: does it pass its floors there, and how much of its gain stays?

    python benchmarks/promise.py [--seeds 20] [--trials 60] [--processes 2] [--out runs/promise]

The quickstart's models (trained once in --out), right or wrong. A seed deals the 240 items of each slice three ways: a
third for the search, a third for the holdout, and a third that no search is given. Each search has a floor of 0.90 on
every slice, or of 97 % of the best source, and no confidence, 0.8 or 0.95; otherwise the defaults. Prints how often
there is a winner, how often it passes every floor on the third part (its floors are settled there by the sources'
scores on that part), and how much of its gain over the base stays. Where there is no winner, the floors that the search
advises are tried with `evomerge.rank`, and as many trials as it advises with `evomerge.resume`. For its word on items,
further searches with confidence 0.8 get 40 items on each split, so that the 160 of the third part hold up to four times
as many: the advised trial is held to the floors on as many of them as it is said to need, with that confidence.

Finished searches in --out are not run again. Exits with 1 where, with a confidence, a smaller share of winners passes
on the third part than it, where advised floors give no winner, or where advised items or trials do so in fewer than
the 80 % of cases that the advice speaks of (less one standard error).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml
from _quickstart import items, models, write_files

FLOORS: dict[str, Any] = {"0.90": 0.90, "97 % of best": {"of": "best_source", "keep": 0.97}}
CONFIDENCES = (None, 0.8, 0.95)
THIRD, FEW = 80, 40
"""Items of a slice on each split."""

ADVISED = 0.8
"""The chance of which advice speaks."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/promise"))
    options = parser.parse_args()
    root = options.out.absolute()
    root.mkdir(parents=True, exist_ok=True)
    models(root)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for done, found in enumerate(pool.map(searched, range(options.seeds), *_same(root, options.trials)), 1):
            rows += found
            print(f"\r{done} of {options.seeds} seeds", end="", file=sys.stderr)
    print(file=sys.stderr)
    return 0 if report(rows) else 1


def _same(*values: Any) -> Iterable[Iterable[Any]]:
    return [[value] * 1000 for value in values]


def searched(seed: int, root: Path, trials: int) -> list[dict[str, Any]]:
    """The searches of one seed: floors, confidence, items, and what became of the winner."""
    kinds = [(name, confidence, THIRD) for name in FLOORS for confidence in CONFIDENCES]
    found = []
    for name, confidence, n_items in [*kinds, *((name, 0.8, FEW) for name in FLOORS)]:
        few = "" if n_items == THIRD else "-few"
        place = root / f"{seed}-{list(FLOORS).index(name)}-{confidence}{few}"
        file = place / "found.json"
        if not file.is_file():
            shutil.rmtree(place, ignore_errors=True)
            search = _search(place, root, seed, FLOORS[name], confidence, n_items, trials)
            file.write_text(json.dumps({"floor": name, "confidence": confidence, "n_items": n_items, **search}))
        found.append(json.loads(file.read_text()))
    return found


def _search(
    place: Path, root: Path, seed: int, floor: Any, confidence: float | None, n_items: int, trials: int
) -> dict[str, Any]:
    import torch

    import evomerge

    torch.set_num_threads(1)
    given, kept = _dealt(root, seed, n_items)
    same: dict[str, Any] = {"floor": floor, "split": {"search": 0.5, "seed": seed}}
    space = write_files(place / "given", root, given, {"seed": seed}, trials, confidence=confidence, **same)
    result = evomerge.search(space, run=str(place / "run"))
    third = write_files(place / "kept", root, kept, {"seed": seed}, trials, **same)
    if result.winner is None:
        advice = result.release.advice if result.release else None
        return {"winner": False, "advice": None if advice is None else _tried(place, third, result, n_items)}
    base = next(t for t in result.search.trials if t.label == "base")
    passes, gain = _on_third(third, result.winner.recipe)
    searched_gain = next(t for t in result.search.trials if t.number == result.winner.number).objective - base.objective
    held = next(t for t in result.holdout.trials if t.label == "base")
    gains = [searched_gain, result.winner.objective - held.objective, gain]
    chance = result.release.chances.get(result.winner.number) if result.release else None
    return {"winner": True, "passes": passes, "gains": gains, "chance": chance}


def _on_third(space: Path, recipe: Any, confidence: float | None = None) -> tuple[bool, float]:
    """Whether a recipe passes every floor on all items of a fitness file, and its gain over the base there. With
    `confidence`, each gate's bound does."""
    from _checkpoints import Checkpoints

    from evomerge.scoring.gates import feasible, judge, scales, settle

    checkpoints = Checkpoints(space)
    measured = {name: checkpoints.scores(parent, "all") for name, parent in checkpoints.parents.items()}
    gates = settle(checkpoints.slices, measured)
    scores = checkpoints.scores(recipe, "all")
    means = [statistics.mean(score.value for score in s.values()) for s in (scores, measured["base"])]
    return feasible(judge(scores, gates, scales(measured, gates), confidence)), means[0] - means[1]


def _tried(place: Path, third: Path, result: Any, n_items: int) -> dict[str, Any]:
    """What came of advice when it was tried; None where there was none, or no way to try it."""
    import evomerge

    release = result.release
    advice, confidence = release.advice, release.confidence
    fitness = yaml.safe_load((place / "given/fitness.yaml").read_text())
    for name, bound in advice.floors.items():
        fitness["slices"][name]["floor"] = bound
    lower = place / "given/lower.yaml"
    lower.write_text(yaml.safe_dump(fitness))
    tried: dict[str, Any] = {"floors": evomerge.rank(place / "run", lower).winner is not None}
    needed = None if advice.items is None else round(advice.items * n_items)
    tried |= {"times": advice.items, "items": None}
    lines = {file: file.read_text().splitlines(keepends=True) for file in (third.parent / "tasks").glob("*.jsonl")}
    if needed is not None and needed <= min(map(len, lines.values())):
        for file, own in lines.items():
            file.write_text("".join(own[:needed]))
        recipe = next(t for t in result.search.trials if t.number == advice.trial).recipe
        tried["items"] = _on_third(third, recipe, confidence)[0]
    tried |= {"n_trials": advice.trials, "trials": None}
    if advice.trials is not None:
        after = evomerge.resume(place / "run", trials=advice.trials)
        tried["trials"] = after.winner is not None
    return tried


def _dealt(root: Path, seed: int, n_items: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The items of each slice that a search is given, `n_items` for each split, and those that are kept from it."""
    given, kept = {}, {}
    for domain, lines in items(root).items():
        lines.sort(key=lambda line: hashlib.sha256(f"{seed} {line}".encode()).digest())
        given[domain], kept[domain] = lines[: 2 * n_items], lines[2 * n_items :]
    return given, kept


def report(rows: list[dict[str, Any]]) -> bool:
    """Prints the table. Whether each promise was kept."""
    print(
        "floors         confidence   winners   passes every floor on the third part   gain: search  holdout  third part"
    )
    met = True
    for name in FLOORS:
        for confidence in CONFIDENCES:
            kind = (name, confidence, THIRD)
            own = [row for row in rows if (row["floor"], row["confidence"], row["n_items"]) == kind]
            won = [row for row in own if row["winner"]]
            passed = sum(row["passes"] for row in won)
            share = passed / len(won) if won else 1.0
            gains = [statistics.mean(row["gains"][at] for row in won) if won else float("nan") for at in range(3)]
            kept = " ".join(f"{gain:+9.4f}" for gain in gains)
            about = f"{name:14} {confidence or 'null':>10}   {len(won):3}/{len(own):<3}"
            print(f"{about}   {passed:3}/{len(won):<3} {share:6.0%}{'':29}{kept}")
            met &= confidence is None or share >= confidence
    lost = [row for row in rows if not row["winner"]]
    few = sum(row["n_items"] == FEW for row in lost)
    print(f"without a winner: {len(lost)} of {len(rows)} searches, {few} of them with {FEW} items a split; advice:")
    for name, share in (("floors", 1.0), ("items", ADVISED), ("trials", ADVISED)):
        tried = [row["advice"][name] for row in lost if row["advice"] and row["advice"][name] is not None]
        print(f"  {name:7} came true in {sum(tried)} of {len(tried)}")
        met &= not tried or statistics.mean(tried) >= share - (share * (1 - share) / len(tried)) ** 0.5
    return met


if __name__ == "__main__":
    sys.exit(main())
