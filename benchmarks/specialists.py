"""A search on real checkpoints, end to end: can a merge beat the base on three domains at once, where averages cannot?

    python benchmarks/specialists.py FOLDER [--trials 300] [--kill]

FOLDER holds `base`, `shakespeare`, `gsm8k`, `french` (checkpoints) and `items/*_text.jsonl`. The search is task
arithmetic with one weight for each source and layer; each domain is a slice of bits per byte whose floor is the
base's score and 0.02. Prints the base, the sources, the uniform average, equal weights from 0.1 to 1.0, and the
winner, all on the holdout items. `--kill` instead runs 60 trials twice, once whole and once killed with SIGKILL at
five random moments and resumed, and compares the two studies.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

DOMAINS = ("shakespeare", "gsm8k", "french")


def write_files(root: Path, folder: Path, trials: int) -> Path:
    """Tasks, fitness file and space file for the specialists in `folder`; returns the space file."""
    (root / "tasks").mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        task = {
            "task": f"specialists_{domain}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"items/{domain}_text.jsonl")}},
            "test_split": "test",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": "bits_per_byte"}],
            "metadata": {"version": 1},
        }
        (root / "tasks" / f"{domain}.yaml").write_text(yaml.safe_dump(task))
    floor = {"of": "base", "margin": 0.02}
    # The tokenizer adds a bos token itself; lm-eval would put a second one before it.
    about = {"metric": "bits_per_byte", "add_bos_token": False, "floor": floor}
    fitness = {
        "include": ["tasks"],
        "batch_size": 64,
        "slices": {domain: {"task": f"specialists_{domain}", **about} for domain in DOMAINS},
    }
    space = {
        "base": str(folder / "base"),
        "sources": {domain: str(folder / domain) for domain in DOMAINS},
        "layers": "each",
        "genes": {
            "method": "task_arithmetic",
            "weight": {"low": 0.0, "high": 1.0, "init": 0.1, "per": ["sources", "layers"]},
        },
        "optimizer": {"name": "cma-es", "sigma": 0.1, "seed": 0},
        "budget": {"trials": trials},
        "fitness": "fitness.yaml",
    }
    (root / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
    (root / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    return root / "space.yaml"


def search(space: Path) -> int:
    """Search, add the equal-weight ladder to the final table, say whether the targets were met."""
    from rich.console import Console

    import evomerge
    from evomerge.evaluator.evaluator import Evaluator, place_candidates
    from evomerge.report.live import view
    from evomerge.report.tables import describe, leaderboard_table
    from evomerge.study.observer import Observer
    from evomerge.study.prepare import launched_plan
    from evomerge.study.run.manifest import Launch
    from evomerge.study.run.trial import Trial

    started = time.perf_counter()
    with view(Console(stderr=True)) as observer:
        result = evomerge.search(space, run=str(space.parent / "run"), observer=observer)
    seconds = time.perf_counter() - started
    plan = launched_plan(Launch(str(space)))
    placement = place_candidates(plan.models, plan.fitness, "cpu", None)
    bench = Evaluator.load(plan.models, plan.fitness, placement, Observer())
    leaderboard = result.holdout
    ladder = []
    for tenth in range(1, 11):
        recipe = plan.space.recipe({d.key: tenth / 10 for d in plan.space.dimensions})
        scores = bench.evaluate(recipe, "holdout", lambda name: None).scores
        values = {name: s.value for name, s in scores.items()}
        trial = Trial(-tenth, "search", f"equal weights {tenth / 10}", {}, [], recipe.id, 0, "complete", values)
        ladder.append(replace(trial, objective=sum(values.values()) / len(values)))
    references = [t for t in leaderboard.trials if t.kind == "reference"]
    last = [result.winner] if result.winner else leaderboard.merges()[:1]
    rows = [(t.label or describe(t), t) for t in (*references, *ladder, *last)]
    metrics = {name: piece.metric for name, piece in result.slices.items()}
    Console(width=140).print(leaderboard_table("Holdout split", leaderboard, rows, metrics))
    count = len(result.search.trials)
    print(f"{count} trials in {seconds:.0f} s; materializing took {share(result.search.trials):.1%} of an evaluation")
    average = next(t for t in references if t.label == "uniform")
    missed = all(not leaderboard.outcome(t).feasible for t in (average, *ladder))
    print(f"uniform average and equal weights all miss a floor: {missed}")
    if result.winner is None or result.winner.objective is None:
        print("no winner")
        return 1
    base = next(t for t in references if t.label == "base")
    assert base.objective is not None
    gain = result.winner.objective - base.objective
    print(f"winner: better than the base by {gain:.4f} bits per byte in the mean (target 0.01)")
    return 0 if missed and gain >= 0.01 else 1


def share(trials: Any) -> float:
    seconds = [t.seconds for t in trials if t.seconds.get("score")]
    return float(sum(s["materialize"] for s in seconds) / sum(s["total"] for s in seconds))


def kill(space: Path, kills: int) -> int:
    """The same study whole and in pieces; 0 if they are equal."""
    from evomerge.study.after.status import status

    root = space.parent
    command = [sys.executable, "-m", "evomerge"]
    subprocess.run([*command, "search", space, "--run", root / "whole"], check=False, stderr=subprocess.DEVNULL)
    draw = random.Random(time.time_ns())
    done = 0
    for attempt in range(kills + 1):
        action = ["resume", root / "pieces"] if attempt else ["search", space, "--run", root / "pieces"]
        process = subprocess.Popen([*command, *action], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if attempt == kills:
            process.wait()
            break
        wait_for_trials(root / "pieces", done + draw.randint(0, 12), process)
        time.sleep(draw.uniform(0.0, 3.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        trials = status(root / "pieces").search.trials
        done = sum(t.state != "running" for t in trials)
        print(f"killed at {done} finished trials, {sum(t.state == 'running' for t in trials)} in flight", flush=True)
    whole, pieces = (status(root / name).search.trials for name in ("whole", "pieces"))
    facts = [
        [(t.number, t.label, t.genome, t.recipe_id, t.digest, dict(t.scores), t.state) for t in run]
        for run in (whole, pieces)
    ]
    equal = facts[0] == facts[1]
    print(f"whole {len(whole)} trials, in pieces {len(pieces)}; genomes, scores, digests and order equal: {equal}")
    return 0 if equal else 1


def wait_for_trials(run: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    from evomerge.errors import EvomergeError
    from evomerge.study.after.status import status

    while process.poll() is None:
        time.sleep(0.5)
        try:
            if sum(t.state != "running" for t in status(run).search.trials) >= count:
                return
        except EvomergeError:
            continue


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/specialists"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    trials = options.trials or (60 if options.kill else 300)
    space = write_files(options.out.absolute(), options.folder.absolute(), trials)
    return kill(space, 5) if options.kill else search(space)


if __name__ == "__main__":
    sys.exit(main())
