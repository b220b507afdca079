"""Shell completion: a script for the shell that asks, made of the parser (shtab)."""

from __future__ import annotations

import argparse
from typing import Any

from evomerge.arguments import Parser
from evomerge.errors import InputError, Where

SHELLS = ("bash", "zsh", "fish")
_FILES = ("FILE", "YAML", "MODEL", "SOURCE", "BASE", "OUT", "A", "B")
_RUNS = {"bash": "_evomerge_runs", "zsh": "_files -W runs -/", "fish": "(__fish_complete_directories runs/)"}
_PREAMBLE = {"bash": '_evomerge_runs() { compgen -W "$(ls runs 2>/dev/null)" -- "$1"; compgen -d -- "$1"; }'}


class Completion(argparse.Action):
    """argparse's action of ``--completion SHELL``: prints the script and ends the program."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(completion(parser, str(values)))
        parser.exit()


def completion(parser: Parser, shell: str) -> str:
    """The script that completes the commands and options of a parser in a shell. InputError without shtab."""
    try:
        import shtab
    except ImportError:
        where = Where("--completion")
        raise InputError("shtab is not installed", "pip install 'evomerge[completion]'", where) from None
    for command in parser.below.values():
        for action in command._actions:
            names = str(action.metavar or "").replace(".", "_").split("_")
            if action.metavar == "RUN":
                action.complete = _RUNS  # type: ignore[attr-defined]
            elif action.choices is None and set(names) & set(_FILES):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell, preamble=_PREAMBLE))
