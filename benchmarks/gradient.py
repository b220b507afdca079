"""What the gradient is worth: `warm_start: gradient`, a weight for each source and tensor, against searches without.

    python benchmarks/gradient.py FOLDER [--seeds 5] [--trials 15] [--only fine] [--processes 3] [--out runs/gradient]
    python benchmarks/gradient.py FOLDER --accuracy

FOLDER is as in specialists.py: task arithmetic, 48 items a slice on each split, dealt by the seed. First each seed is
searched with the gradient, for so many trials. Then the searches without (`ROWS`) get the seconds of evaluation that it
took, and as many trials as they can do in them; one process has one thread, and as many run side by side at all times.
Prints for each seed the gain over the base on the holdout items (mean of three slices of bits per byte) of the
winner, who passes the three floors `of: base, margin: 0` there, and the time that the whole command took. Finished runs
in --out are not run again. Exits with 1 where the mean gain is not at least twice that of every other row.

With --accuracy the slices are right-or-wrong ones (4-way continuations, minimal pairs), and it prints how far what the
gradient gains in cross-entropy is a gain in accuracy.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from _searches import search
from specialists import write_files

FACTOR = 2.0
ITEMS = 48
ALONG = "gradient, sources x tensors"
ROWS: dict[str, tuple[dict[str, Any], list[str], tuple[float, float]]] = {
    ALONG: ({"name": "surrogate", "warm_start": "gradient"}, ["sources", "tensors"], (-1.0, 2.0)),
    "default, sources x tensors": ({"name": "surrogate"}, ["sources", "tensors"], (-1.0, 2.0)),
    "default, the same in [0, 1]": ({"name": "surrogate"}, ["sources", "tensors"], (0.0, 1.0)),
    "default, sources x layers": ({"name": "surrogate"}, ["sources", "layers"], (0.0, 1.0)),
    "cma-es, sources x layers": ({"name": "cma-es", "sigma": 0.1}, ["sources", "layers"], (0.0, 1.0)),
}
"""Row -> the optimizer, the axes of the weight, and its range."""

FINE = 3
"""So many of the rows search the fine genome (`--only fine`)."""

CHOICES = ("shakespeare_choice", "gsm8k_choice", "grammar_pairs")


@dataclass(frozen=True)
class Found:
    """`gain`: of the winner over the base on the holdout split, None without a winner; `spent`: seconds in trials;
    `wall`: of the whole command."""

    gain: float | None
    trials: int
    spent: float
    wall: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/gradient"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--only", choices=["fine"])
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--accuracy", action="store_true")
    options = parser.parse_args()
    root, folder = options.out.absolute(), options.folder.absolute()
    if options.accuracy:
        accuracy(root / "accuracy", folder, options.trials)
        return 0
    seeds, root = range(options.seeds), root / str(options.trials)
    with ThreadPoolExecutor(options.processes) as pool:
        runs = {ALONG: list(pool.map(lambda s: run(root, folder, ALONG, s, options.trials, None), seeds))}
        limits = [found.spent for found in runs[ALONG]]
        for row in list(ROWS)[: FINE if options.only else None]:
            if row != ALONG:
                runs[row] = list(pool.map(lambda s, row=row: run(root, folder, row, s, None, limits[s]), seeds))
    return report(runs)


def run(root: Path, folder: Path, row: str, seed: int, trials: int | None, seconds: float | None) -> Found:
    """One search in a process of its own, unless it is there already."""
    place = root / f"{re.sub('[^a-z0-9]+', '-', row)}-{seed}"
    budget = {"trials": trials, "time": seconds}
    ended = search(place, lambda: files(place, folder, row, seed, budget))
    state = ended.status
    base = next(t.objective for t in ended.release.leaderboard.trials if t.label == "base")
    gain = None if state.winner is None else (state.winner.objective or 0.0) - (base or 0.0)
    spent = sum(t.seconds.get("total", 0.0) for t in state.search.trials)
    return Found(gain, state.done, spent, ended.seconds)


def files(place: Path, folder: Path, row: str, seed: int, budget: dict[str, Any]) -> Path:
    space = write_files(place, folder, 60)
    fitness = yaml.safe_load((place / "fitness.yaml").read_text())
    fitness["split"] = {"search": 0.5, "seed": seed}
    for piece in fitness["slices"].values():
        piece |= {"items": ITEMS, "floor": {"of": "base", "margin": 0.0}}
    (place / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
    optimizer, axes, (low, high) = ROWS[row]
    about = yaml.safe_load(space.read_text())
    about |= {"optimizer": {**optimizer, "seed": seed}, "budget": {k: v for k, v in budget.items() if v is not None}}
    about["genes"]["weight"] = {"low": low, "high": high, "per": axes}
    space.write_text(yaml.safe_dump(about, sort_keys=False))
    return space


def report(runs: dict[str, list[Found]]) -> int:
    seeds = len(runs[ALONG])
    print(f"{'gain over the base, holdout':30}" + "".join(f"{f'seed {seed}':>10}" for seed in range(seeds))
          + f"{'mean':>10}   trials   seconds in trials   of the command")  # fmt: skip
    means = {}
    for row, found in runs.items():
        gains = [f.gain if f.gain is not None else 0.0 for f in found]  # who has no winner keeps the base
        means[row] = statistics.mean(gains)
        cells = "".join(f"{f'{f.gain:+.4f}' if f.gain is not None else 'none':>10}" for f in found)
        trials, spent, wall = (statistics.mean(getattr(f, k) for f in found) for k in ("trials", "spent", "wall"))
        print(f"{row:30}{cells}{means[row]:>+10.4f}   {trials:6.0f}   {spent:17.0f}   {wall:14.0f}")
    best = max(mean for row, mean in means.items() if row != ALONG)
    met = means[ALONG] >= FACTOR * best
    ratio = means[ALONG] / best if best > 0 else float("inf")
    print(f"{ratio:.1f} times the best search without gradients (at least {FACTOR:g}: {met})")
    return 0 if met else 1


# Right-or-wrong slices


def accuracy(place: Path, folder: Path, trials: int) -> None:
    """One search with the gradient over slices whose metric is accuracy."""
    ended = search(place, lambda: choices(place, folder, trials))
    state = ended.status
    searched = {t.number: t for t in state.search.trials}
    held = {t.number: t for t in ended.release.leaderboard.trials}
    base = next(t for t in state.search.trials if t.label == "base")
    steps = [t.number for t in state.search.trials if t.slopes]
    chosen = {*steps[:: max(1, len(steps) // 4)], steps[-1], *(n for n in held if n in steps)}
    print(
        "cross-entropy on the items of the slopes / for checking; accuracy (less the base's) on search / holdout items"
    )
    for number in sorted(chosen | ({state.winner.number} if state.winner else set())):
        trial, winner = searched[number], state.winner is not None and state.winner.number == number
        marks = (" (winner)" if winner else "") + (" (predicted)" if trial.state == "pruned" else "")
        print(f"trial {number} {trial.label}{marks}")
        for name, score in trial.scores.items():
            about = trial.slopes[name] if trial.slopes else None
            entropy = f"{about['loss']:.4f} / {about['checked']:.4f}" if about else "-"
            text = f"  {name:20} {entropy:>18}   {score:.4f} ({score - base.scores[name]:+.4f})"
            if number in held:
                again, before = held[number].scores[name], held[base.number].scores[name]
                text += f" / {again:.4f} ({again - before:+.4f})"
            print(text)


def choices(place: Path, folder: Path, trials: int) -> Path:
    """4-way continuations behind a long context, and minimal pairs without one."""
    space = write_files(place, folder, trials)
    for name in CHOICES:
        pairs = name == "grammar_pairs"
        task = {
            "task": f"specialists_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"items/{name}.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "" if pairs else "{{context}}",
            "doc_to_choice": "{{[good, bad]}}" if pairs else "{{choices}}",
            "doc_to_target": 0 if pairs else "label",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
            "metadata": {"version": 1},
        }
        (place / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))
    about = {"metric": "acc", "floor": {"of": "base", "margin": 0.02}, "items": 120}
    slices = {name: {"task": f"specialists_{name}", **about} for name in CHOICES}
    fitness = {"include": ["tasks"], "batch_size": 64, "slices": slices}
    (place / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
    found = yaml.safe_load(space.read_text())
    found["optimizer"] = {"name": "surrogate", "warm_start": "gradient", "seed": 0}
    found["genes"]["weight"] = {"low": -1.0, "high": 2.0, "per": ["sources", "tensors"]}
    space.write_text(yaml.safe_dump(found, sort_keys=False))
    return space


if __name__ == "__main__":
    sys.exit(main())
