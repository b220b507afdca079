"""The command line of a slice. Imports nothing heavy: it is checked before a search, too."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from evomerge.errors import InputError
from evomerge.escape import quoted
from evomerge.files.objects import PLACEHOLDER, Command, SliceSpec


def check_program(spec: SliceSpec) -> None:
    """InputError where the program of a command is not here."""
    assert spec.command is not None
    program = spec.command.arguments[0]
    if PLACEHOLDER.search(program):
        raise InputError("begins with a placeholder", "name a program first", spec.at("command"))
    if found(spec.command) is None:
        problem = f"there is no program {quoted(program)} that can be run"
        raise InputError(problem, "install it, or name its file (seen from `cwd`)", spec.at("command"))


def found(command: Command) -> str | None:
    """The file of a command's program: of its folder, where it is a path, else of the search path."""
    program = command.arguments[0]
    return shutil.which(str(command.folder / program) if "/" in program else program)


def filled(command: Command, values: Mapping[str, str]) -> list[str]:
    """The arguments with the values of the placeholders, the program by its whole path."""
    braces = {"{{": "{", "}}": "}"}
    arguments = [PLACEHOLDER.sub(lambda m: braces.get(m[0]) or values[m[1]], part) for part in command.arguments]
    return [found(command) or arguments[0], *arguments[1:]]
