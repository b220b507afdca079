"""`evomerge report`: gathers what a run holds, and writes it as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where
from evomerge.report.page.costs import costs_data
from evomerge.report.page.html import page
from evomerge.report.page.importance import importance_data
from evomerge.report.page.items import items_data
from evomerge.report.page.models import models_data
from evomerge.report.page.recipe import environment_data, recipe_data
from evomerge.report.page.run import Run
from evomerge.report.page.trials import trials_data
from evomerge.report.page.verdict import verdict_data
from evomerge.report.page.weights import weights_data
from evomerge.report.runs import how_far
from evomerge.safety.durable import write_whole
from evomerge.study.after.status import Status
from evomerge.versions import versions


@dataclass(frozen=True)
class Report:
    """A page that was written, and its data."""

    file: Path
    data: dict[str, Any]


def write_report(run: str | Path, output: str | Path | None = None, *, compare: str | Path | None = None) -> Report:
    """Writes the page of a run: one HTML file that needs no network.

    Args:
        run: its name in ``./runs``, or its path. It may be running, stopped or finished.
        output: the file; default: `report.html` in the run's folder, or `report-with-RUN.html` where another run is
            laid beside it.
        compare: that other run.

    Raises:
        InputError: there is no such run, it is damaged, or the file cannot be written.
    """
    first = Run(run)
    second = None if compare is None else Run(compare)
    data = run_data(first)
    if second is not None:
        data["compared_with"] = run_data(second)
    file = _default(first, second) if output is None else Path(output)
    try:
        write_whole(file, page(data))
    except OSError as error:
        raise InputError(f"cannot write {file} ({error.strerror})", "name another file", Where("--output")) from None
    return Report(file, data)


def write_page(state: Status, file: Path) -> None:
    """Writes the page of a run whose state is known. OSError where the file cannot be written."""
    write_whole(file, page(run_data(Run(state))))


def _default(first: Run, second: Run | None) -> Path:
    report = first.folder.report
    return report if second is None else report.with_name(f"report-with-{second.folder.name}.html")


def run_data(run: Run) -> dict[str, Any]:
    """Returns all that the page of a run says, without paths of this machine."""
    subject, state = run.subject, run.state
    return {
        "run": run.folder.name,
        "state": state.state,
        "trials_done": how_far(state),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "evomerge": versions()["evomerge"],
        "objective": str(run.environment.identity.get("fitness file", {}).get("objective", "mean")),
        "winner": state.winner.number if state.winner else None,
        "verdict": run.places.data(verdict_data(run)),
        "models": models_data(run),
        "trials": trials_data(run),
        "weights": weights_data(subject.recipe, run.places) if subject else None,
        "importance": importance_data(run),
        "cost": costs_data(run),
        "items": items_data(run),
        "recipe": recipe_data(run),
        "environment": environment_data(run),
    }
