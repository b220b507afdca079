"""Parses a command line: what is wrong with it is an InputError of one line, with the nearest name."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from evomerge.errors import InputError, Where, nearest, suggestion
from evomerge.escape import shortened

_NUMBER = re.compile(r"-\.?\d")
_MISSING = "the following arguments are required: "
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse's parser, but that options are not abbreviated, and that errors are raised as InputError. `below` holds
    the parsers of the commands, by name."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)
        self.below: dict[str, argparse.ArgumentParser] = {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses words. InputError also for an option that is not known and for a word too many."""
        given = list(sys.argv[1:] if args is None else args)
        command = next((i for i, word in enumerate(given) if not word.startswith("-")), len(given))
        self._check_options(given[:command] if self.below else given, given[command:])
        if self.below and not given:
            raise InputError("a command is missing", f"use one of: {', '.join(self.below)}; see `{self.prog} --help`")
        options, extra = super().parse_known_args(given, namespace)
        # argparse takes an optional word that stands behind an option for one too many
        for action in self._get_positional_actions():
            if extra and action.nargs == "?" and getattr(options, action.dest) is None:
                setattr(options, action.dest, extra.pop(0))
        if "" in given:  # often a variable of the shell that is not set
            self.error("a word is empty")
        if extra:
            self.error(f"{extra[0][:200]!r} is one word too many")
        return options, []

    def _check_options(self, words: Sequence[str], command: Sequence[str]) -> None:
        """Checks what looks like an option among `words`. argparse tells unknown ones last, behind what they made it
        miss. `command` is what follows where the program's own options end."""
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            flag = word.partition("=")[0]
            if not word.startswith("-") or word == "-" or " " in word or _NUMBER.match(word) or flag in known:
                continue
            if word[1] == "-" or word[:2] not in known:  # a short option may have its value right behind it: -j4
                self._refuse(flag, command[0] if self.below and command else "COMMAND")

    def _refuse(self, flag: str, command: str) -> NoReturn:
        """InputError for an unknown option, with the nearest one."""
        if any(flag in parser._option_string_actions for parser in self.below.values()):
            mend = f"write it behind: `{self.prog} {command} ... {flag}`"
            raise InputError(f"{flag} stands before the command", mend)
        names = [name for name in self._option_string_actions if name.startswith("--")]
        close = next((name for name in names if name.startswith(flag)), None) or nearest(flag, names)
        mend = f"did you mean {close}?" if close else f"see `{self.prog} --help`"
        raise InputError(f"{self.prog} has no option {shortened(flag)}", mend)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        if self.below and not action.option_strings:
            raise InputError(f"there is no command {value[:200]!r}", suggestion(value, choices))
        problem = f"{value[:200]!r} is none of {', '.join(choices)}"
        close = nearest(value, choices)
        raise InputError(problem, f"did you mean {close!r}?" if close else "use one of them", _where(action))

    def error(self, message: str) -> NoReturn:
        """InputError with what argparse says."""
        text = message.removeprefix("argument ")
        if text.startswith(_MISSING):
            text = f"needs {text.removeprefix(_MISSING)}"
        raise InputError(f"{self.prog}: {text}", f"see `{self.prog} --help`")


class Switch(argparse.Action):
    """argparse's action of a flag and its opposite: ``--x`` sets True, ``--no-x`` False."""

    def __init__(self, option_strings: Sequence[str], dest: str, default: bool = False, **settings: Any) -> None:
        opposites = [f"--no-{flag[2:]}" for flag in option_strings if flag.startswith("--")]
        super().__init__([*option_strings, *opposites], dest, nargs=0, default=default, **settings)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not (option_string or "").startswith("--no-"))


def whole_number(text: str) -> int:
    """Reads a whole number, for argparse."""
    return _read(int, text, "a whole number")


def number(text: str) -> float:
    """Reads a number, for argparse."""
    return _read(float, text, "a number")


def number_or_auto(text: str) -> int | str:
    """Reads a whole number, or the word "auto", for argparse."""
    return text if text == "auto" else _read(int, text, "a whole number or auto")


def listed(text: str) -> list[str]:
    """Reads words with commas between them, for argparse."""
    return [word for part in text.split(",") if (word := part.strip())]


def _read(read: Callable[[str], T], text: str, what: str) -> T:
    try:
        return read(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not {what}") from None


def _where(action: argparse.Action) -> Where | None:
    return Where("/".join(action.option_strings)) if action.option_strings else None


def named_models(pairs: Sequence[str], option: str = "--reference") -> dict[str, str]:
    """The models of several ``NAME=MODEL``, by name. InputError where one is none, or a name is
    given twice."""
    models: dict[str, str] = {}
    for text in pairs:
        name, equals, model = text.partition("=")
        if not equals or not name or not model:
            raise InputError(f"{text!r} is not NAME=MODEL", "write for example base=models/base", Where(option))
        if name in models:
            raise InputError(f"{name!r} is given twice", "give each once", Where(option))
        models[name] = model
    return models
