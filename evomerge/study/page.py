"""Ends a search with its page: `report.html` in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

from evomerge.registry import PAGE, load
from evomerge.study.observer import Observer

if TYPE_CHECKING:
    from evomerge.study.run.folder import RunFolder
    from evomerge.study.search import Result

P = ParamSpec("P")


def with_page(search: Callable[P, Result]) -> Callable[P, Result]:
    """Makes a search, or its continuation, write its page once its lock is free."""

    @wraps(search)
    def run(*args: P.args, **kwargs: P.kwargs) -> Result:
        result = search(*args, **kwargs)
        observer = kwargs.get("observer")
        write_page(result.folder, observer if isinstance(observer, Observer) else Observer())
        return result

    return run


def write_page(folder: RunFolder, observer: Observer) -> None:
    """Writes a run's page into its folder. What keeps it from being written costs nothing of a search that is done: it
    is a warning."""
    try:
        load(PAGE)(folder.path, folder.report)
    except Exception as error:
        observer.warn(f"{folder.report.name} is not written: {error}")
