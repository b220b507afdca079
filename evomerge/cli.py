"""The command line: one table of options, one table of commands; parse, call, print.

Results go to stdout, progress and errors to stderr.

Exit codes: 0 done; 1 ran, and the answer is no; 2 the input is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from evomerge import __version__, commands, merge_options
from evomerge.arguments import Parser, number, whole_number
from evomerge.commands import INTERRUPTED, NO, PIPE_CLOSED, WRONG, complain
from evomerge.errors import DEBUG, EvomergeError, InputError, Where, describe_unexpected
from evomerge.files.common import parse_seconds
from evomerge.interrupts import ignore, listening
from evomerge.streams import drop_unread, results_only
from evomerge.study.run.folder import RunFolder

_PATIENCE = 10.0
"""Seconds that threads get at the end."""


def entry() -> NoReturn:
    """The program: `main`, and an end. Python waits for threads at its end, and one that a scorer has left behind may
    never end; after an interruption no signal ends it either."""
    code = main()
    threading.Thread(target=_end, args=(code,), daemon=True).start()
    sys.exit(code)


def _end(code: int) -> None:
    time.sleep(_PATIENCE)
    waiting = [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    if waiting:
        problem = f"a thread that the code of a scorer or task has started ({waiting[0].name}) was still running"
        complain(problem, code, "warning")
        os._exit(code)


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Every error is one line on stderr."""
    try:
        return _run(words)
    finally:
        drop_unread()


def _run(words: Sequence[str] | None) -> int:
    options = argparse.Namespace()
    try:
        with results_only(), listening(signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            parser().parse_args(words, options)
            return int(options.handler(options))
    except InputError as error:
        return complain(str(error), WRONG)
    except EvomergeError as error:
        return complain(str(error), NO)
    except KeyboardInterrupt:
        ignore()
        return complain(_how_to_go_on(options), INTERRUPTED, "interrupted")
    except BrokenPipeError:
        return PIPE_CLOSED  # the reader of our output left: no message can reach it
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exception(error)
        return complain(describe_unexpected(error), WRONG)


def _how_to_go_on(options: argparse.Namespace) -> str:
    run = getattr(options, "run_in_progress", None)
    if run is None or not RunFolder.named(run).environment.is_file():
        return "nothing was left half done; run the same command again"
    if options.handler is commands.run_quickstart:
        return "every finished trial is kept; run the same command again to go on"
    return f"every finished trial is kept; go on with `evomerge resume {RunFolder.named(run).handle}`"


def _seconds(text: str) -> float:
    return parse_seconds(text, Where("--time"))


_FLAG = {"action": "store_true"}
_WORKERS = "processes that score candidates, each with a model of its own; the GPUs are dealt among them"

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
    "settings": (
        ("--set",),
        {
            "action": "append",
            "default": [],
            "metavar": "key=value",
            "help": "override a key of the space file, or of the fitness file (fitness.batch_size=4)",
        },
    ),
    "begin": (
        ("--from",),
        {"metavar": "RUN[:TRIAL]", "help": "begin with another run's winner, carried over into this space"},
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
    "workers": (("--workers",), {"type": whole_number, "default": 1, "metavar": "N", "help": _WORKERS}),
    "folder": (("--dir",), {"default": ".", "help": "where models, runs and files go (default: here)"}),
    "runs": (("--runs",), {"default": "runs", "metavar": "DIR", "help": "where the runs are (default: runs)"}),
    # a run's trials
    "trial": (("--trial",), {"type": whole_number, "metavar": "N", "help": "another trial than the winner"}),
    "allow_infeasible": (
        ("--allow-infeasible",),
        {**_FLAG, "help": "even if it misses a floor, or was stopped early"},
    ),
    # scores
    "fitness": (("--fitness",), {"metavar": "FILE", "help": "the fitness file"}),
    "split": (("--split",), {"choices": ["search", "holdout", "all"], "default": "holdout"}),
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
    "base": (("--base",), {"metavar": "MODEL", "help": "the base, where no recipe beside the model names it"}),
    "sources": (
        ("--source",),
        {"action": "append", "default": [], "metavar": "MODEL", "help": "a model that was merged; once for each"},
    ),
    "quick": (("--quick",), {**_FLAG, "help": "look at files and weights only, and run no model"}),
    "items": (
        ("--items",),
        {"metavar": "FILE", "help": "write the score of every item: FILE.jsonl or FILE.parquet"},
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
    **merge_options.OPTIONS,
}  # fmt: skip
"""Option name -> (flags, argparse's settings). The name, or `dest`, is that of the Python function's parameter."""


@dataclass(frozen=True)
class Command:
    """One command.

    run: runs it and returns the exit code.
    help: its purpose, in one line.
    positionals: name -> argparse's settings.
    options: names of `OPTIONS`.
    overrides: option name -> the settings that differ from those in `OPTIONS`.
    """

    run: Callable[[argparse.Namespace], int]
    help: str
    positionals: Mapping[str, Mapping[str, Any]]
    options: Sequence[str]
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_RUN = {"run": {"metavar": "RUN"}}

COMMANDS = {
    "quickstart": Command(
        commands.run_quickstart,
        "train small specialists here, search them, export the winner",
        {},
        ("folder", "trials", "device"),
    ),
    "search": Command(
        commands.run_search,
        "launch a study from a search-space file",
        {"space": {"metavar": "SPACE.yaml"}},
        (
            "run", "trials", "time", "most_items", "optimizer", "seed", "device", "memory", "workers", "asynchronous",
            "fitness", "storage", "settings", "begin", "full", "trust_tasks",
            "allow_pickle", "dry_run",
        ),
        {"fitness": {"help": "in place of the file's"}},
    ),
    "resume": Command(
        commands.run_resume,
        "continue a run exactly where it stopped",
        _RUN,
        ("trials", "time", "most_items", "device", "memory", "workers"),
        {
            "trials": {"metavar": "TOTAL", "help": "new total budget of trials"},
            "time": {"help": "new total budget of evaluation time"},
            "most_items": {"metavar": "TOTAL", "help": "new total budget of items"},
            "device": {"default": None, "help": "in place of the launch's"},
            "workers": {"default": None, "help": f"{_WORKERS}; in place of the launch's"},
        },
    ),
    "status": Command(
        commands.run_status,
        "list the runs, or show one run's progress and best trials",
        {"run": {"metavar": "RUN", "nargs": "?"}},
        ("runs",),
    ),
    "export": Command(
        commands.run_export,
        "write a run's best recipe as mergekit YAML",
        _RUN,
        ("output", "trial", "allow_infeasible"),
        {"output": {"help": "default: stdout"}},
    ),
    "rank": Command(
        commands.run_rank,
        "rank a run's trials under another fitness file, evaluating nothing",
        _RUN,
        ("fitness", "output"),
        {
            "fitness": {
                "required": True,
                "help": "other weights, floors, confidence or objective, or fewer slices",
            },
            "output": {"help": "write the new winner's recipe there"},
        },
    ),
    "compare": Command(
        commands.run_compare,
        "compare two trials of a run item by item",
        {
            **_RUN,
            "first": {"metavar": "A", "help": "a trial's number, or base, a source, uniform, winner"},
            "second": {"metavar": "B", "nargs": "?", "help": "default: the winner, or the best so far"},
        },
        ("split",),
        {
            "split": {
                "choices": ["search", "holdout"],
                "default": None,
                "help": "default: holdout where both have scores there, else search",
            }
        },
    ),
    "merge": Command(
        commands.run_merge,
        "carry out a mergekit recipe: write the merged checkpoint",
        {"recipe": {"metavar": "RECIPE.yaml"}, "out": {"metavar": "OUT_DIR", "nargs": "?"}},
        ("device", "allow_pickle", *merge_options.OPTIONS),
        {"device": {"default": "cpu", "help": "where to compute: cpu, cuda, cuda:1 or auto"}},
    ),
    "evaluate": Command(
        commands.run_evaluate,
        "score a checkpoint or a recipe and hold it to its floors",
        {"model": {"metavar": "MODEL_OR_RECIPE"}},
        ("fitness", "split", "references", "output", "items", "device", "memory", "trust_tasks", "allow_pickle"),
        {"fitness": {"required": True}, "output": {"help": "write what --json prints to a file, too"}},
    ),
    "doctor": Command(
        commands.run_doctor,
        "say why a merged model is worse than it should be",
        {"model": {"metavar": "MODEL_OR_RECIPE"}},
        (
            "fitness", "base", "sources", "split", "quick", "output", "device", "memory", "trust_tasks", "allow_pickle",
        ),
        {
            "fitness": {"help": "also score the model and every parent on its slices, and take prompts from there"},
            "output": {"help": "write what --json prints to a file, too"},
        },
    ),
    "path": Command(
        commands.run_path,
        "score the straight line between two models, or from a recipe's base to its merge",
        {
            "start": {"metavar": "A", "help": "a model or a recipe; a recipe alone starts at its base"},
            "end": {"metavar": "B", "nargs": "?", "help": "a model or a recipe"},
        },
        (
            "fitness", "split", "references", "points", "first", "last", "output", "device", "memory", "trust_tasks",
            "allow_pickle",
        ),
        {
            "fitness": {"required": True},
            "output": {"default": "path.png", "help": "the picture: .png, .svg or .pdf (default: path.png)"},
        },
    ),
}  # fmt: skip


def parser() -> Parser:
    """Builds the parser of all commands with their options; the documentation test reads it, too."""
    root = Parser(prog="evomerge")
    root.description = "Search for the best way to merge fine-tuned language models."
    root.add_argument("--version", action="version", version=f"evomerge {__version__}")
    subparsers = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        description = f"{command.help[0].upper()}{command.help[1:]}."
        subparser = subparsers.add_parser(name, help=command.help, description=description)
        subparser.set_defaults(handler=command.run)
        root.below[name] = subparser
        for positional, settings in command.positionals.items():
            subparser.add_argument(positional, **settings)
        for option in ("json", *command.options):
            flags, settings = OPTIONS[option]
            subparser.add_argument(*flags, **{"dest": option, **settings, **command.overrides.get(option, {})})
    return root


if __name__ == "__main__":
    sys.exit(main())
