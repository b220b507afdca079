"""Bits per byte of checkpoints by evomerge's suite, and what a candidate costs beyond its forward passes.

usage: python benchmarks/score_matrix_check.py SPECIALISTS [MODEL ...]

SPECIALISTS is a folder with checkpoints and an `items/` folder of ``*_text.jsonl`` and ``*_choice.jsonl``. Prints one
row per model (compare with an independent scorer's), then, for one candidate of all the slices, the seconds in the
forward passes, in log-softmax and gathering (lm-eval's, and part of its way of scoring), and in everything else.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.files.fitness_file import read_fitness
from evomerge.scoring.suite import Suite

DATA: dict[str, Any] = {"dataset_path": "json", "test_split": "test"}
TEXT = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def build(items: Path, folder: Path, model: Any, tokenizer: Any) -> Suite:
    """A suite of every item file, scored with one bos token in front, as the independent scorer does."""
    slices = {}
    for file in sorted(items.glob("*_text.jsonl")) + sorted(items.glob("*_choice.jsonl")):
        kind, metric = (TEXT, "bits_per_byte") if file.stem.endswith("_text") else (CHOICE, "acc")
        config = {"task": file.stem, **DATA, **kind, "dataset_kwargs": {"data_files": {"test": str(file.resolve())}}}
        (folder / f"{file.stem}.yaml").write_text(yaml.safe_dump(config))
        slices[file.stem] = {"task": file.stem, "metric": metric}
    path = folder / "fitness"
    path.write_text(yaml.safe_dump({"include": ["."], "batch_size": 32, "slices": slices}))
    fitness = read_fitness(path)
    pieces = {n: replace(p, options={"add_bos_token": False}) for n, p in fitness.slices.items()}
    return Suite.build(replace(fitness, slices=pieces), model, tokenizer, split="all")


class Stopwatch:
    """Seconds spent inside the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specialists", type=Path)
    parser.add_argument("models", nargs="*", default=["base", "shakespeare", "gsm8k", "french"])
    options = parser.parse_args()
    root: Path = options.specialists
    model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        suite = build(root / "items", Path(folder), model, tokenizer)
        print(f"built in {time.perf_counter() - started:.2f} s (lm-eval's import included)")
        for name in options.models:
            model.load_state_dict(load_file(root / name / "model.safetensors"), strict=False)
            scores = suite.score("all")
            shown = {k: f"{suite.slices[k].show(s.value):.3f}" for k, s in scores.items()}
            print(f"{name:14s}", "  ".join(f"{k}={v}" for k, v in shown.items()), flush=True)
    _costs(suite, model)


def _costs(suite: Suite, model: Any, rounds: int = 3) -> None:
    """Where one candidate's time goes, median of some rounds, on the search split."""
    suite.score()
    lm = next(iter(suite.slices.values())).source.lm  # type: ignore[attr-defined]
    forward, scoring = Stopwatch(), Stopwatch()
    model.forward = forward.wrap(model.forward)
    lm._loglikelihood_tokens = scoring.wrap(lm._loglikelihood_tokens)
    rows = []
    for _ in range(rounds):
        forward.seconds = scoring.seconds = 0.0
        started = time.perf_counter()
        suite.score()
        rows.append((time.perf_counter() - started, forward.seconds, scoring.seconds))
    total, passes, tokens = (statistics.median(column) for column in zip(*rows, strict=True))
    items = sum(piece.counts["search"] for piece in suite.slices.values())
    print(f"one candidate, {items} items: {total:.2f} s = forward passes {passes:.2f} s", end="")
    print(f" + rest of lm-eval's scoring {tokens - passes:.2f} s + everything else {total - tokens:.3f} s")


if __name__ == "__main__":
    main()
