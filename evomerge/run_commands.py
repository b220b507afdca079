"""Runs the commands that stay with a run, finished or going on: no model is loaded."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.answers import DONE, NO, call, complain, end, print_data, show, view
from evomerge.errors import InputError, Where
from evomerge.escape import printable
from evomerge.outputs import output_file, save
from evomerge.study.run.folder import is_name

if TYPE_CHECKING:  # optuna
    from evomerge.study.after.status import Status


def run_dashboard(options: argparse.Namespace) -> int:
    # optuna takes a moment to import.
    from evomerge.study.after.dashboard import dashboard, is_loopback

    if not is_loopback(options.host):
        complain(f"whoever reaches {options.host} can read the run", DONE, "warning")

    def ready(url: str) -> None:
        print(printable(f"{url} shows the run; Ctrl-C ends it"), file=sys.stderr, flush=True)
        if options.json:
            print(f'{{"url": "{url}"}}', flush=True)

    dashboard(options.run, port=options.port, host=options.host, ready=ready)
    return DONE


def run_rank(options: argparse.Namespace) -> int:
    from evomerge.report import data, rankings
    from evomerge.study.after.rank import rank, write_winner

    output = output_file(options.output, "--output", read=[options.fitness])
    result = call(rank, options, output=None)
    unsaved = save(output, lambda file: write_winner(result, file))
    if options.json:
        print_data(options, data.ranked_data(result))
    else:
        show(*rankings.ranked_tables(result), *rankings.ranked_words(result))
    return end(DONE if result.winner else NO, unsaved)


def run_compare(options: argparse.Namespace) -> int:
    from evomerge.report import data, rankings
    from evomerge.study.after.compare import compare

    result = call(compare, options)
    if options.json:
        return print_data(options, data.compared_data(result))
    listed = rankings.differing_words(result)
    return show(rankings.compared_table(result), rankings.compared_words(result), *listed)


def run_report(options: argparse.Namespace) -> int:
    # numpy takes a moment to import.
    from evomerge.report.page.write import write_report

    output_file(options.output, "--output")
    report = call(write_report, options)
    file = os.path.relpath(report.file)
    lines = [f"wrote {file}", report.data["verdict"]["headline"]]
    return print_data(options, {**report.data, "file": file}, lambda: lines)


def run_status(options: argparse.Namespace) -> int:
    from evomerge.report import data, gains, runs
    from evomerge.study.after import status as after

    if options.watch:
        _check_watch(options)
    if options.run is None:
        if options.runs != "runs" and not Path(options.runs).is_dir():
            raise InputError(f"there is no folder {options.runs}", "name the folder that holds runs", Where("--runs"))
        states = after.runs(options.runs)
        if options.json:
            return print_data(options, [data.run_data(s) for s in states])
        return show(runs.runs_table(states) if states else f"no runs in {options.runs}")
    run = Path(options.runs) / options.run if is_name(options.run) else options.run
    state = _watched(run) if options.watch else after.status(run)
    if options.json:
        return print_data(options, data.status_data(state))
    gained = [gains.gained_table(state.gained)] if state.gained else []
    if not state.finished:
        return show(runs.status_words(state), *runs.status_tables(state), *gained)
    from evomerge.report.results import result_table
    from evomerge.report.verdicts import verdict

    ended = [result_table(state), *gained, *verdict(state, look_closer=False)]
    return show(runs.status_words(state), *runs.status_tables(state), *ended)


def _check_watch(options: argparse.Namespace) -> None:
    if options.json:
        mend = "give one of them; `evomerge status RUN --json` prints the run as it is now"
        raise InputError("--watch shows a run as it goes on, and --json prints one document", mend, Where("--watch"))
    if options.run is None:
        raise InputError("needs a RUN", "`evomerge status` lists the runs", Where("--watch"))


def _watched(run: str | Path) -> Status:
    """Shows a run until no process drives it. Ctrl-C ends that, and not the run."""
    from evomerge.study.after.watch import watch

    with view() as observer:
        return watch(run, observer)
