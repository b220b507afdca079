"""The command line: one table of commands, over that of options; parse, call, print.

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

from evomerge import __version__, commands, merge_options, run_commands, shipping
from evomerge.answers import INTERRUPTED, NO, PIPE_CLOSED, WRONG, complain
from evomerge.arguments import Parser
from evomerge.completion import SHELLS, Completion
from evomerge.errors import DEBUG, EvomergeError, InputError, describe_unexpected
from evomerge.interrupts import ignore, listening
from evomerge.options import OPTIONS, WORKERS
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


_RUN = {"run": {"metavar": "RUN", "help": "its name in ./runs, or its folder"}}
_MODEL = {"metavar": "MODEL_OR_RECIPE", "help": "a checkpoint, or a recipe (.yaml)"}

COMMANDS = {
    "quickstart": Command(
        commands.run_quickstart,
        "train small specialists here, search them, export the winner",
        {},
        ("folder", "trials", "device"),
    ),
    "init": Command(
        commands.run_init,
        "write a first search space and fitness file for some models and tasks",
        {
            "base": {"metavar": "BASE", "nargs": "?", "help": "the common ancestor of the models"},
            "sources": {"metavar": "SOURCE", "nargs": "*", "help": "its fine-tunes; adapters are sources, too"},
        },
        ("tasks", "output", "fitness", "trials", "force", "allow_pickle", "from_mergekit_evolve"),
        {
            "output": {"metavar": "SPACE.yaml", "default": "space.yaml", "help": "default: space.yaml"},
            "fitness": {"help": "one that is there already, in place of tasks"},
            "trials": {"help": "the budget, for which the number of genes is chosen (default: 100)"},
        },
    ),
    "check": Command(
        commands.run_check,
        "say what can go wrong with a merge, and what to try, from headers and samples of the weights",
        {
            "models": {
                "metavar": "FILE_OR_MODEL",
                "nargs": "+",
                "help": "a search space or a recipe, or a base and its sources",
            }
        },
        ("require_token", "figure", "device", "memory", "allow_pickle"),
    ),
    "search": Command(
        commands.run_search,
        "launch a study from a search-space file, or from models and tasks",
        {
            "space": {
                "metavar": "SPACE_OR_MODEL",
                "nargs": "+",
                "help": "a search space; or a base and its sources, with --tasks",
            }
        },
        (
            "tasks", "run", "trials", "time", "most_items", "optimizer", "seed", "device", "memory", "workers",
            "ray", "asynchronous", "fitness", "storage", "copy_items", "settings", "from_run", "trackers", "full",
            "trust_tasks", "allow_pickle", "dry_run",
        ),
        {"fitness": {"help": "in place of the file's"}, "trackers": {"default": []}},
    ),
    "resume": Command(
        commands.run_resume,
        "continue a run exactly where it stopped",
        _RUN,
        ("trials", "time", "most_items", "device", "memory", "workers", "ray", "copy_items", "trackers"),
        {
            "trials": {"metavar": "TOTAL", "help": "new total budget of trials"},
            "time": {"help": "new total budget of evaluation time"},
            "most_items": {"metavar": "TOTAL", "help": "new total budget of items"},
            "device": {"default": None, "help": "in place of the launch's"},
            "workers": {"help": f"{WORKERS}; in place of the launch's"},
            "ray": {"help": "the Ray cluster, in place of the launch's; off: this machine alone"},
            "copy_items": {"help": "copy every item's score there, in place of the launch's URL"},
        },
    ),
    "status": Command(
        run_commands.run_status,
        "list the runs, or show one run's progress and best trials",
        {"run": {**_RUN["run"], "nargs": "?"}},
        ("watch", "runs"),
    ),
    "dashboard": Command(
        run_commands.run_dashboard,
        "serve a run to the browser with optuna-dashboard",
        _RUN,
        ("port", "host"),
    ),
    "export": Command(
        shipping.run_export,
        "write a run's best recipe as mergekit YAML",
        _RUN,
        (
            "output", "trial", "allow_infeasible", "portable", "checkpoint", "as_adapter", "rank", "device",
            "overwrite", "push_to_hub", "public",
        ),
        {
            "output": {"help": "default: stdout"},
            "device": {"default": "cpu", "help": "where to merge: cpu, cuda, cuda:1 or auto"},
            "overwrite": {"help": "replace the checkpoint that is there"},
        },
    ),
    "rank": Command(
        run_commands.run_rank,
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
        run_commands.run_compare,
        "compare two trials of a run item by item",
        {
            **_RUN,
            "first": {"metavar": "A", "help": "a trial's number, or base, a source, uniform, winner"},
            "second": {"metavar": "B", "nargs": "?", "help": "default: the winner, or the best so far"},
        },
        ("split", "slices", "answers", "most"),
        {
            "split": {
                "choices": ["search", "holdout"],
                "default": None,
                "help": "default: holdout where both have scores there, else search",
            }
        },
    ),
    "report": Command(
        run_commands.run_report,
        "write a run's page: verdict, charts, items, recipe in one HTML file that needs no network",
        _RUN,
        ("output", "compare_with"),
        {"output": {"help": "default: report.html in the run's folder"}},
    ),
    "merge": Command(
        shipping.run_merge,
        "carry out a mergekit recipe: write the merged checkpoint",
        {
            "recipe": {"metavar": "RECIPE.yaml", "help": "a recipe in mergekit's form"},
            "out": {"metavar": "OUT_DIR", "nargs": "?", "help": "the folder to write"},
        },
        ("as_adapter", "rank", "device", "allow_pickle", *merge_options.OPTIONS),
        {"device": {"default": "cpu", "help": "where to compute: cpu, cuda, cuda:1 or auto"}},
    ),
    "reproduce": Command(
        shipping.run_reproduce,
        "make a published merge again from its reproduce.json, and compare file by file",
        {"record": {"metavar": "REPRODUCE.json", "help": "the file beside the published merge"}},
        ("models", "output", "device", "allow_pickle"),
        {
            "output": {"metavar": "DIR", "help": "keep what is made again there"},
            "device": {"default": "cpu", "help": "where to compute: cpu, cuda, cuda:1 or auto"},
        },
    ),
    "evaluate": Command(
        commands.run_evaluate,
        "score a checkpoint or a recipe and hold it to its floors",
        {"model": _MODEL},
        (
            "fitness", "split", "references", "output", "items", "prompts", "eval_results", "device", "memory",
            "trust_tasks", "allow_pickle",
        ),
        {"fitness": {"required": True}, "output": {"help": "write what --json prints to a file, too"}},
    ),
    "doctor": Command(
        commands.run_doctor,
        "say why a merged model is worse than it should be",
        {"model": _MODEL},
        (
            "fitness", "base", "sources", "split", "quick", "prompts", "output", "device", "memory", "trust_tasks",
            "allow_pickle",
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
    "extract": Command(
        commands.run_extract,
        "write the change from a base to a model as a LoRA adapter, with what it lacks of each module's",
        {
            "base": {"metavar": "BASE", "help": "the checkpoint that the adapter belongs to"},
            "model": {"metavar": "MODEL", "help": "a fine-tune of it, or an adapter"},
            "out": {"metavar": "OUT", "help": "the folder to write"},
        },
        ("rank", "device", "overwrite", "allow_pickle"),
        {
            "rank": {"required": True},
            "device": {"default": "cpu", "help": "where a merged model is computed: cpu, cuda, cuda:1 or auto"},
        },
    ),
    "align": Command(
        commands.run_align,
        "permute B's hidden units onto A's, which changes nothing that B computes (Git Re-Basin)",
        {
            "reference": {"metavar": "A", "help": "a model, or a .safetensors file"},
            "model": {"metavar": "B", "help": "the one whose units are permuted"},
            "out": {"metavar": "OUT", "help": "the folder, or the .safetensors file, to write"},
        },
        ("spec", "fitness", "seed", "device", "memory", "overwrite", "trust_tasks", "allow_pickle"),
        {
            "fitness": {"help": "match the units by what they do on its search items, not by their weights"},
            "seed": {"default": 0, "help": "of the order in which groups of units are matched"},
        },
    ),
}  # fmt: skip


def parser() -> Parser:
    """Builds the parser of all commands with their options; the documentation test reads it, too."""
    root = Parser(prog="evomerge")
    root.description = "Search for the best way to merge fine-tuned language models."
    root.add_argument("--version", action="version", version=f"evomerge {__version__}")
    root.add_argument(
        "--completion", action=Completion, choices=SHELLS, metavar="SHELL", help="print a script for bash, zsh or fish"
    )
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
