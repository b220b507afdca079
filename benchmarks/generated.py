"""Generated answers: what the gradient is worth on them, and answers that are right and short.

    python benchmarks/generated.py OUT [--seeds 0-2] [--trials 30] [--only gradient | lengths]

The quickstart's models, trained in OUT, whose tasks ask for a text in place of a choice: greedy, scored by exact match.

- gradient: `optimizer: gradient` (a weight for each source and tensor), whose right answers are those that the best
  source writes, and then the default search with the seconds of evaluation that it took. Prints the mean exact match
  of three tasks on the holdout items. Floors at the base's scores. Exits with 1 where the gradient's mean is lower.
- lengths: two specialists of one task, of which one answers at length (ten words, the last of which is the answer) and
  well, the other one in a word and less well. `generated_tokens` is minimised under a floor on the exact match. Prints
  both on the holdout items. Exits with 1 where a seed has no winner, or one that is no shorter than the one with the
  long answers.

A search that ended is not run again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from _quickstart import ITEMS, items, models
from _searches import Ended, search
from rich.console import Console
from rich.table import Table

from evomerge.demo import data, train

WORDY = "what is the fee for the parcel ? answer"
"""What the specialist with the long answers writes in front of each."""
STEPS = {"wordy": 300, "terse": 22}
KEEP = 0.9
"""The share of the best specialist's exact match that has to be kept."""


def write_task(folder: Path, name: str, lines: list[str], limit: int) -> None:
    """A task that lets the model write; its answer is the last word."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(lines))
    task = {
        "task": f"written_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["<end>"], "max_gen_toks": limit, "do_sample": False},
        "filter_list": [
            {
                "name": "last",
                "filter": [{"function": "regex", "regex_pattern": r"(\S+)\s*$"}, {"function": "take_first"}],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


def run(place: Path, space: Mapping[str, Any], fitness: Mapping[str, Any], tasks: Path, *options: str) -> Ended:
    """A search in `place`, with a copy of the tasks."""

    def write() -> Path:
        shutil.copytree(tasks, place / "tasks")
        (place / "fitness.yaml").write_text(yaml.safe_dump({"include": ["tasks"], **fitness}, sort_keys=False))
        (place / "space.yaml").write_text(yaml.safe_dump({**space, "fitness": "fitness.yaml"}, sort_keys=False))
        return place / "space.yaml"

    return search(place, write, *options)


# What the gradient is worth


def gradient(out: Path, seeds: list[int], trials: int, console: Console) -> bool:
    tasks = out / "tasks"
    for domain, lines in items(out).items():
        write_task(tasks, domain, lines[:ITEMS], 3)
    slices = {
        domain: {"task": f"written_{domain}", "metric": "exact_match", "floor": {"of": "base", "margin": 0.0}}
        for domain in data.DOMAINS
    }
    fitness = {"batch_size": 64, "slices": slices}
    folder = out / "models/quickstart"
    table = Table("seed", "optimizer", "seconds", "trials", "exact match", "base", title="holdout items")
    values: dict[str, list[float]] = {"gradient": [], "default": []}
    for seed in seeds:
        seconds = 0.0
        for name in values:
            along = name == "gradient"
            space = {
                "base": str(folder / "base"),
                "sources": {domain: str(folder / domain) for domain in data.DOMAINS},
                "layers": 2,
                "genes": {
                    "method": "task_arithmetic",
                    "weight": {
                        "low": 0.0,
                        "high": 1.2,
                        "init": 0.4,
                        "per": ["sources", "tensors" if along else "layers"],
                    },
                },
                "optimizer": {"seed": seed, **({"name": "gradient"} if along else {})},
            }
            limit = ["--trials", str(trials)] if along else ["--time", f"{seconds:.1f}s", "--trials", "10000"]
            ended = run((out / f"{name}-{seed}").absolute(), space, fitness, tasks, *limit)
            spent = [trial.seconds.get("total", 0.0) for trial in ended.status.search.trials]
            seconds = sum(spent) if along else seconds
            value, base = (_holdout(ended, label) for label in (None, "base"))
            values[name].append(value)
            table.add_row(str(seed), name, f"{sum(spent):.1f}", str(len(spent)), f"{value:.4f}", f"{base:.4f}")
    console.print(table)
    means = {name: fmean(found) for name, found in values.items()}
    console.print(f"mean: gradient {means['gradient']:.4f}, default {means['default']:.4f} at equal seconds")
    return means["gradient"] >= means["default"]


def _holdout(ended: Ended, label: str | None) -> float:
    """The objective on the holdout items of a reference, or (None) of the winner; the base's where there is none."""
    board, winner = ended.release.leaderboard, ended.release.winner
    if label is None and winner is not None:
        return board.outcome(winner).objective or 0.0
    return board.outcome(next(t for t in board.trials if t.label == (label or "base"))).objective or 0.0


# Right and short


def train_pair(out: Path) -> None:
    """Trains two specialists of the shipping fees from the quickstart's base, with long and with short answers."""
    folder, settings = out / "models/pair", train.Settings()
    words = [train.PAD, train.END, train.UNKNOWN, *data.vocabulary()]
    index = {word: i for i, word in enumerate(words)}
    lessons = data.lessons("shipping", "new")
    for name, steps in STEPS.items():
        if (folder / name / "model.safetensors").is_file():
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        model = train.new_model(settings, len(words))
        train.load_weights(model, out / "models/quickstart/base")
        before = f"{WORDY} " if name == "wordy" else ""
        rows = [
            ([index[w] for w in lesson.prompt.split()], [index[w] for w in f"{before}{lesson.answer} <end>".split()])
            for lesson in lessons
        ]
        _learn(model, rows, steps)
        train.save(model, train.new_tokenizer(words), folder / name)


def _learn(model: Any, rows: list[tuple[list[int], list[int]]], steps: int) -> None:
    """Trains on all tokens of the answers."""
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        chosen = [rows[i] for i in torch.randint(len(rows), (64,), generator=draw).tolist()]
        longest = max(len(prompt) + len(answer) for prompt, answer in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, (prompt, answer) in enumerate(chosen):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def lengths(out: Path, seeds: list[int], trials: int, console: Console) -> bool:
    train_pair(out)
    tasks = out / "pair-tasks"
    write_task(tasks, "shipping", items(out)["shipping"], 16)
    fitness = {
        "batch_size": 64,
        "slices": {
            "right": {
                "task": "written_shipping",
                "metric": "exact_match",
                "floor": {"of": "best_source", "keep": KEEP},
                "weight": 0,
            },
            "tokens": {"of": "right", "metric": "generated_tokens"},
        },
    }
    table = Table("seed", "model", "exact match", "tokens", "floor", title="holdout items")
    good = True
    for seed in seeds:
        space = {
            "base": str(out / "models/quickstart/base"),
            "sources": {name: str(out / "models/pair" / name) for name in STEPS},
            "layers": 4,
            "genes": {
                "method": "task_arithmetic",
                "weight": {"low": 0.0, "high": 1.2, "init": 0.5, "per": ["sources", "layers"]},
            },
            "optimizer": {"seed": seed},
            "budget": {"trials": trials},
        }
        ended = run((out / f"lengths-{seed}").absolute(), space, fitness, tasks)
        board, winner = ended.release.leaderboard, ended.release.winner
        floor = board.gates["right"].floor or 0.0
        rows = {trial.label: trial.scores for trial in board.trials if trial.kind == "reference"}
        if winner is not None:
            rows["winner"] = next(t for t in board.trials if t.number == winner.number).scores
        for name, scores in rows.items():
            values = (
                f"{scores['right']:.4f}",
                f"{-scores['tokens']:.2f}",
                "pass" if scores["right"] >= floor else "miss",
            )
            table.add_row(str(seed), name, *values)
        good &= winner is not None and rows["winner"]["tokens"] > rows["wordy"]["tokens"]
    console.print(table)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--only", choices=("gradient", "lengths"))
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    seeds, console = list(range(int(first), int(last or first) + 1)), Console(width=100)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    models(options.out)
    parts = {"gradient": gradient, "lengths": lengths}
    chosen = [part for name, part in parts.items() if options.only in (None, name)]
    held = [part(options.out, seeds, options.trials, console) for part in chosen]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
