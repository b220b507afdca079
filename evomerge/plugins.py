"""Finds what other installed packages add: merge methods, optimizers and scorers, by their entry points.

A plug-in that is broken, or has a name that is taken, is a line of warning, and is left out.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Container, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar

from evomerge.escape import shortened

Kind = Literal["methods", "optimizers", "scorers"]
T = TypeVar("T")

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z][\w-]{0,59}")


def found(kind: Kind, taken: Container[str], read: Callable[[EntryPoint], T]) -> dict[str, T]:
    """The plug-ins of a kind, by name.

    Args:
        taken: names that exist.
        read: what an entry point stands for. Whatever it raises is what is wrong with the plug-in.
    """
    plugins: dict[str, T] = {}
    for point in sorted(entry_points(group=f"evomerge.{kind}"), key=lambda point: (point.name, point.value)):
        try:
            if not _NAME.fullmatch(point.name):
                raise ValueError("it has no name of letters, digits, - and _")
            if point.name in taken or point.name in plugins:
                raise ValueError("its name is taken")
            plugins[point.name] = read(point)
        except (Exception, SystemExit) as error:
            what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            owner = f" of {point.dist.name}" if point.dist is not None else ""
            text = f"the plug-in {point.name!r}{owner} ({kind}) is left out: {' '.join(what.split())}"
            _log.warning("%s", shortened(text, 300))
    return plugins


class Table(Mapping[str, T]):
    """What evomerge has by name, with what plug-ins add. These are looked for at the first look into the table, not
    before: their code may import ours. While they are loaded, the table holds what is our own."""

    def __init__(self, own: Mapping[str, T], added: Callable[[], Mapping[str, T]]) -> None:
        self._own, self._added = own, added
        self._all: Mapping[str, T] | None = None

    def _known(self) -> Mapping[str, T]:
        if self._all is None:
            self._all = self._own
            self._all = {**self._own, **self._added()}
        return self._all

    def __getitem__(self, name: str) -> T:
        return self._known()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


def loaded(point: EntryPoint, kind: type[T]) -> T:
    """The object of an entry point, which must be a `kind`."""
    value = point.load()
    if not isinstance(value, kind):
        raise ValueError(f"{point.value} is no {kind.__name__}")
    return value


def check_target(target: Any) -> None:
    """ValueError unless a text is `module:name`, of a module that is there. The module itself is not imported."""
    module, colon, name = str(target).partition(":")
    if not (isinstance(target, str) and colon and name):
        raise ValueError(f"{target!r} is not module:name")
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"there is no module {module}")


@cache
def scorers() -> dict[str, str]:
    """The scorers that other packages add: name -> `module:function`."""

    def read(point: EntryPoint) -> str:
        check_target(point.value)
        return point.value

    return found("scorers", (), read)
