"""Ends a search with its page: `report.html` in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from evomerge.registry import PAGE, load
from evomerge.study.after.status import Status
from evomerge.study.observer import Observer
from evomerge.study.run.release import Ended

P = ParamSpec("P")


R = TypeVar("R", bound=Ended)


def with_page(search: Callable[P, R]) -> Callable[P, R]:
    """Makes a search, or its continuation, write its page once its lock is free."""

    @wraps(search)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        result = search(*args, **kwargs)
        observer = kwargs.get("observer")
        write_page(result, observer if isinstance(observer, Observer) else Observer())
        return result

    return run


def write_page(result: Ended, observer: Observer) -> None:
    """Writes a run's page into its folder. What keeps it from being written costs nothing of a search that is done: it
    is a warning."""
    observer.phase("writing the page of the run")
    file = result.folder.report
    try:
        load(PAGE)(state_of(result), file)
    except Exception as error:
        observer.warn(f"{file.name} is not written: {error}; `evomerge report {result.folder.handle}` writes it")


def state_of(result: Ended) -> Status:
    """A run that has ended as its storage would tell it, which takes long to read again where there are thousands of
    genes."""
    budget = result.release.budget or {} if result.release else {}
    return Status(
        folder=result.folder,
        budget=budget,
        slices=result.facts,
        search=result.search,
        release=result.release,
        rescored=result.holdout.trials,
        gained=result.gained,
        items=sum(t.items_scored for t in result.search.trials if t.state != "running"),
        confidence=result.confidence,
    )
