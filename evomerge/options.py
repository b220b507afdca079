"""The options of all commands."""

from __future__ import annotations

from typing import Any

from evomerge import merge_options
from evomerge.arguments import listed, number, number_or_auto, whole_number
from evomerge.errors import Where
from evomerge.files.common import parse_seconds


def _seconds(text: str) -> float:
    return parse_seconds(text, Where("--time"))


_FLAG = {"action": "store_true"}
WORKERS = "processes that score candidates, each with a model of its own; the GPUs are dealt among them"

OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    # every command
    "json": (("--json",), {**_FLAG, "help": "print one JSON document on stdout"}),
    # the study
    "run": (("--run",), {"metavar": "NAME", "help": "the run's name in ./runs (default: the file's name)"}),
    "trials": (("--trials",), {"type": whole_number, "metavar": "N", "help": "budget of trials, references included"}),
    "time": (
        ("--time",),
        {"type": _seconds, "metavar": "2h", "help": "budget of evaluation time: 90s, 20m, 4h, 2d"},
    ),
    "most_items": (
        ("--items",),
        {
            "dest": "items",
            "type": whole_number,
            "metavar": "N",
            "help": "budget of items of the search split, references included",
        },
    ),
    "optimizer": (("--optimizer",), {"metavar": "NAME", "help": "in place of the file's"}),
    "seed": (("--seed",), {"type": whole_number, "metavar": "N", "help": "of the optimizer and the random masks"}),
    "asynchronous": (
        ("--asynchronous",),
        {**_FLAG, "help": "ask for the next candidate as soon as a worker is free, not a generation at a time"},
    ),
    "storage": (("--storage",), {"metavar": "URL", "help": "an Optuna storage in place of the run's journal"}),
    "copy_items": (
        ("--copy-items",),
        {"metavar": "URL", "help": "also copy every item's score there: s3://..., another disk, what fsspec knows"},
    ),
    "settings": (
        ("--set",),
        {
            "action": "append",
            "default": [],
            "metavar": "key=value",
            "help": "override a key of the space file, or of the fitness file (fitness.batch_size=4)",
        },
    ),
    "from_run": (
        ("--from",),
        {"metavar": "RUN[:TRIAL]", "help": "begin with another run's winner, carried over into this space"},
    ),
    "trackers": (
        ("--track",),
        {
            "action": "extend",
            "type": listed,
            "default": None,
            "metavar": "NAME,...",
            "help": "record the trials with mlflow, wandb, tensorboard or trackio",
        },
    ),
    "trust_tasks": (
        ("--trust-tasks",),
        {**_FLAG, "help": "run the code of tasks, too, that is not in the folders under `include`"},
    ),
    "allow_pickle": (
        ("--allow-pickle",),
        {**_FLAG, "help": "read pickled weights (.bin), too, where a model has no safetensors; no code of them is run"},
    ),
    "full": (("--full",), {**_FLAG, "help": "score every candidate on all items (pruning: false)"}),
    "dry_run": (("--dry-run",), {**_FLAG, "help": "check everything that needs no weights, then stop"}),
    # where it runs
    "device": (
        ("--device",),
        {
            "default": "auto",
            "metavar": "D",
            "help": "cpu, cuda, cuda:1, several GPUs (cuda:0,cuda:1) or auto (one, or all if the model needs them)",
        },
    ),
    "memory": (
        ("--memory",),
        {
            "metavar": "SIZE",
            "help": "the most memory for base and sources: 20GB, or device=20GB,host=64GB; the rest is read from the "
            "files",
        },
    ),
    "workers": (
        ("--workers",),
        {"type": number_or_auto, "metavar": "N", "help": f"{WORKERS} (auto: one for each)"},
    ),
    "ray": (
        ("--ray",),
        {
            "nargs": "?",
            "const": "local",
            "metavar": "ADDRESS",
            "help": "workers on the nodes of this Ray cluster (auto: the one that runs here; no address: one of this "
            "machine alone)",
        },
    ),
    "folder": (
        ("--dir",),
        {"default": "evomerge-quickstart", "help": "where models, runs and files go (default: evomerge-quickstart)"},
    ),
    "runs": (("--runs",), {"default": "runs", "metavar": "DIR", "help": "where the runs are (default: runs)"}),
    "watch": (("--watch",), {**_FLAG, "help": "show a running search until it ends"}),
    # a page that shows a run
    "port": (
        ("--port",),
        {"type": whole_number, "default": 8080, "metavar": "N", "help": "of the page (default: 8080; 0: any)"},
    ),
    "host": (
        ("--host",),
        {"default": "127.0.0.1", "metavar": "ADDRESS", "help": "what to listen on (default: this machine alone)"},
    ),
    # a run's trials
    "trial": (("--trial",), {"type": whole_number, "metavar": "N", "help": "another trial than the winner"}),
    "allow_infeasible": (
        ("--allow-infeasible",),
        {**_FLAG, "help": "even if it misses a floor, or was stopped early"},
    ),
    "portable": (
        ("--portable",),
        {**_FLAG, "help": "name local models by their folders alone, not by paths: a recipe to publish"},
    ),
    "checkpoint": (("--checkpoint",), {"metavar": "DIR", "help": "also merge it: write the checkpoint there"}),
    # a change as a LoRA adapter
    "as_adapter": (
        ("--as-adapter",),
        {**_FLAG, "help": "write a LoRA adapter of the base, as PEFT loads it, in place of a checkpoint"},
    ),
    "rank": (("--rank",), {"type": whole_number, "metavar": "R", "help": "of the adapter"}),
    "models": (
        ("--models",),
        {
            "action": "append",
            "default": [],
            "metavar": "NAME=PATH",
            "help": "where a model is that is not where it was; once for each",
        },
    ),
    # scores
    "fitness": (("--fitness",), {"metavar": "FILE", "help": "the fitness file"}),
    "split": (
        ("--split",),
        {"choices": ["search", "holdout", "all"], "default": "holdout", "help": "items to score (default: holdout)"},
    ),
    "references": (
        ("--reference",),
        {
            "action": "append",
            "default": [],
            "metavar": "NAME=MODEL",
            "help": "a model that relative floors refer to, such as base=models/base",
        },
    ),
    "output": (("-o", "--output"), {"metavar": "FILE"}),
    "items": (
        ("--items",),
        {"metavar": "FILE", "help": "write the score of every item: FILE.jsonl or FILE.parquet"},
    ),
    "answers": (
        ("--answers",),
        {**_FLAG, "help": "list the items on which the two differ, with their texts and both answers"},
    ),
    "slices": (
        ("--slice",),
        {"action": "append", "default": [], "metavar": "NAME", "help": "compare on this slice only; once for each"},
    ),
    "most": (
        ("--most",),
        {"type": whole_number, "metavar": "N", "help": "list so many items of a slice (default: 10, or 20 of all)"},
    ),
    "compare_with": (
        ("--compare",),
        {"dest": "compare", "metavar": "RUN2", "help": "lay this run beside the other one"},
    ),
    "eval_results": (
        ("--eval-results",),
        {**_FLAG, "help": "write scores on whole public benchmarks into the model's folder, for the hub"},
    ),
    "prompts": (
        ("--prompt",),
        {
            "action": "append",
            "default": [],
            "metavar": "TEXT",
            "help": "show what every model writes after this text; may be given several times",
        },
    ),
    # a line between two models
    "points": (
        ("--points",),
        {"type": whole_number, "default": 11, "metavar": "N", "help": "how many, ends included (default: 11)"},
    ),
    "first": (("--from",), {"type": number, "default": 0.0, "metavar": "T", "help": "default: 0, which is A"}),
    "last": (
        ("--to",),
        {
            "type": number,
            "default": 1.0,
            "metavar": "T",
            "help": "default: 1, which is B; 1.5 goes beyond it by half of the way",
        },
    ),
    # before a merge
    "require_token": (
        ("--require-token",),
        {
            "action": "append",
            "default": [],
            "metavar": "TOKEN",
            "help": "exit with 1 if the merged model would not have this token",
        },
    ),
    "tasks": (
        ("--tasks",),
        {
            "action": "extend",
            "type": listed,
            "default": [],
            "metavar": "TASK,...",
            "help": "what a merge must be able to do: names of lm-eval's tasks, or task files (.yaml)",
        },
    ),
    "from_mergekit_evolve": (
        ("--from-mergekit-evolve",),
        {"metavar": "FILE", "help": "convert a configuration of mergekit-evolve, in place of models and tasks"},
    ),
    "force": (("--force",), {**_FLAG, "help": "write over files that are there"}),
    "figure": (("--figure",), {"metavar": "FILE", "help": "draw where the sources conflict: .png, .svg or .pdf"}),
    # a diagnosis
    "base": (("--base",), {"metavar": "MODEL", "help": "the base, where no recipe beside the model names it"}),
    "sources": (
        ("--source",),
        {"action": "append", "default": [], "metavar": "MODEL", "help": "a model that was merged; once for each"},
    ),
    "quick": (("--quick",), {**_FLAG, "help": "look at files and weights only, and run no model"}),
    # an alignment
    "spec": (
        ("--spec",),
        {"metavar": "FILE.yaml", "help": "which axes follow which group of units (default: built in)"},
    ),
    **merge_options.OPTIONS,
}  # fmt: skip
"""Option name -> (flags, argparse's settings). The name, or `dest`, is that of the Python function's parameter."""
