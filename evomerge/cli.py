"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done; 1 ran, and the answer is no; 2 the input is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from evomerge import __version__, arguments, commands
from evomerge.commands import INTERRUPTED, NO, PIPE_CLOSED, WRONG, complain
from evomerge.errors import EvomergeError, InputError
from evomerge.interrupts import ignore, listening


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = parser().parse_args(words)
    try:
        with listening(signal.SIGTERM):
            return int(options.handler(options))
    except InputError as error:
        return complain(str(error), WRONG)
    except EvomergeError as error:
        return complain(str(error), NO)
    except KeyboardInterrupt:
        ignore()
        return complain(_how_to_go_on(options), INTERRUPTED, "interrupted")
    except BrokenPipeError:
        # Whoever read our output left: nothing to say to, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return complain(f"{error.filename or 'the system'}: {error.strerror or error}", WRONG)


def _how_to_go_on(options: argparse.Namespace) -> str:
    from evomerge.study.run.folder import RunFolder

    run = getattr(options, "run_in_progress", None)
    if run is None or not RunFolder.named(run).environment.is_file():
        return "nothing was left half done; run the same command again"
    if options.handler is commands.run_quickstart:
        return "every finished trial is kept; run the same command again to go on"
    return f"every finished trial is kept; go on with `evomerge resume {RunFolder.named(run).handle}`"


# The parser

COMMANDS = {
    "quickstart": "train small specialists here, search them, export the winner",
    "search": "launch a study from a search-space file",
    "resume": "continue a run exactly where it stopped",
    "status": "list the runs, or show one run's progress and best trials",
    "export": "write a run's best recipe as mergekit YAML",
    "rank": "rank a run's trials under another fitness file, evaluating nothing",
    "compare": "compare two trials of a run item by item",
    "merge": "carry out a mergekit recipe: write the merged checkpoint",
    "evaluate": "score a checkpoint or a recipe and hold it to its floors",
    "path": "score the straight line between two models, or from a recipe's base to its merge",
}
"""What each is for; `commands.run_NAME` is what it does, `arguments.add_NAME` what it takes."""


def parser() -> argparse.ArgumentParser:
    """All commands with their options; also what the documentation test reads."""
    root = argparse.ArgumentParser(prog="evomerge")
    root.description = "Search for the best way to merge fine-tuned language models."
    root.add_argument("--version", action="version", version=f"evomerge {__version__}")
    known = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, about in COMMANDS.items():
        command = known.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        command.set_defaults(handler=getattr(commands, f"run_{name}"))
        command.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        getattr(arguments, f"add_{name}")(command)
    return root


if __name__ == "__main__":
    sys.exit(main())
