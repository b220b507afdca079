"""Runs each command: calls the public function of its name, prints the result, chooses the exit code.

Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from evomerge.errors import InputError, Where
from evomerge.evaluator.device import choose_device
from evomerge.examine.evaluate import evaluate
from evomerge.examine.path import PathInterrupted, path
from evomerge.recipe.mergekit import read_recipe
from evomerge.report.figures import FORMATS, draw_path
from evomerge.study.dry_run import dry_run
from evomerge.study.run.folder import is_name
from evomerge.study.run.items import save_items

DONE, NO, WRONG, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
T = TypeVar("T")


def _call(function: Callable[..., T], options: argparse.Namespace, **others: Any) -> T:
    """Calls a public function with each option that is named as one of its parameters, and with `others`."""
    parameters = inspect.signature(function).parameters
    return function(**{**{name: value for name, value in vars(options).items() if name in parameters}, **others})


def run_search(options: argparse.Namespace) -> int:
    if options.full:
        options.settings = [*options.settings, "fitness.pruning=false"]
    if options.dry_run:
        return _dry_run(options)
    from evomerge.study.search import search

    with _view() as observer:
        options.run_in_progress = options.run or Path(options.space).stem
        result = _call(search, options, observer=observer)
    return _finish(options, result)


def _dry_run(options: argparse.Namespace) -> int:
    facts = _call(dry_run, options)
    return _print(options, facts, lambda: "\n".join(f"{key}: {value}" for key, value in facts.items()))


def run_resume(options: argparse.Namespace) -> int:
    from evomerge.study.search import resume

    options.run_in_progress = options.run
    with _view() as observer:
        result = _call(resume, options, observer=observer)
    return _finish(options, result)


def _finish(options: argparse.Namespace, result: Any, files: dict[str, str] | None = None) -> int:
    """Prints the end of a search: the table, and what to do next."""
    from evomerge.report import data, gains, results

    if options.json:
        _print(options, {**data.result_data(result), **(files or {})})
    else:
        _show(results.result_table(result))
        if result.gained is not None:
            _show(gains.gained_table(result.gained))
        print(results.verdict(result))
    return DONE if result.winner else NO


def run_rank(options: argparse.Namespace) -> int:
    from evomerge.report import data, rankings
    from evomerge.study.after.rank import rank

    result = _call(rank, options)
    if options.json:
        _print(options, data.ranked_data(result))
    else:
        _show(rankings.ranked_tables(result))
        print(rankings.ranked_words(result))
    return DONE if result.winner else NO


def run_compare(options: argparse.Namespace) -> int:
    from evomerge.report import data, rankings
    from evomerge.study.after.compare import compare

    result = _call(compare, options)
    if options.json:
        return _print(options, data.compared_data(result))
    _show(rankings.compared_table(result))
    return _say(rankings.compared_words(result))


def run_status(options: argparse.Namespace) -> int:
    from evomerge.report import data, gains, tables
    from evomerge.study.after.status import runs, status

    if options.run is None:
        states = runs(options.runs)
        if options.json:
            return _print(options, [data.run_data(s) for s in states])
        return _show(tables.runs_table(states)) if states else _say(f"no runs in {options.runs}")
    state = status(Path(options.runs) / options.run if is_name(options.run) else options.run)
    if options.json:
        return _print(options, data.status_data(state))
    failed = sum(t.state == "failed" for t in state.search.trials)
    winner = f"winner {state.winner.name}" if state.winner else ("no winner" if state.finished else "not finished")
    print(
        f"run {state.folder.name}: {state.done}/{state.budget.get('trials') or '-'} trials, {failed} failed, {winner}"
    )
    _show(tables.status_table(state))
    return _show(gains.gained_table(state.gained)) if state.gained else DONE


def run_export(options: argparse.Namespace) -> int:
    from evomerge.study.after.export import export

    text = _call(export, options)
    if options.json:
        return _print(options, {"recipe": text, "file": options.output})
    if options.output is None:
        print(text, end="")
    else:
        print(
            f"wrote {options.output}; `evomerge merge {options.output} OUT_DIR` makes the checkpoint", file=sys.stderr
        )
    return DONE


def run_merge(options: argparse.Namespace) -> int:
    read_recipe(Path(options.recipe))  # an error in it is reported before torch is imported
    from evomerge.merging.disk.stream import merge

    device = choose_device("cuda" if options.cuda else options.device)
    with _view() as observer:
        folder = _call(merge, options, device=device, progress=observer.progress)
    return _print(options, {"checkpoint": str(folder)}, lambda: f"wrote {folder}")


def run_evaluate(options: argparse.Namespace) -> int:
    from evomerge.report import tables
    from evomerge.report.data import evaluated_data

    items = _output(options.items, "--items", (".jsonl", ".parquet"))
    output = _output(options.output, "--output")
    references = _references(options.references)
    with _view() as observer:
        result = _call(evaluate, options, references=references, observer=observer)
    data = evaluated_data(result)
    if output:
        output.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if items:
        save_items(items, {name: score.items for name, score in result.scores.items()})
    if options.json:
        _print(options, data)
    else:
        _show(tables.evaluated_table(result))
        missed = ", ".join(v.slice for v in result.verdicts if not v.passed)
        print(f"misses the floor of {missed}" if missed else "passes every floor")
    return DONE if result.feasible else NO


def run_path(options: argparse.Namespace) -> int:
    from evomerge.report.paths import path_data, path_summary, path_table

    figure = _output(options.output, "--output", FORMATS)
    references = _references(options.references)
    try:
        with _view() as observer:
            result = _call(path, options, references=references, observer=observer)
    except PathInterrupted as stop:
        result = stop.partial
    if figure:
        draw_path(result, figure)
    if options.json:
        _print(options, {**path_data(result), "figure": options.output})
    else:
        _show(path_table(result))
        print(f"{path_summary(result)}\nwrote {options.output}")
    if not result.complete:
        return complain(f"{len(result.points)} of {len(result.wanted)} points are scored", INTERRUPTED, "interrupted")
    return DONE if result.feasible else NO


def _output(name: str | None, option: str, endings: Sequence[str] = ()) -> Path | None:
    """Returns a file to write. InputError, before an hour of scoring, where it cannot be written."""
    if name is None:
        return None
    file = Path(name)
    if endings and file.suffix.lower() not in endings:
        raise InputError(f"{name} is none of {', '.join(endings)}", f"write for example x{endings[0]}", Where(option))
    if not file.parent.is_dir():
        raise InputError(f"there is no folder {file.parent}", "create it", Where(option))
    if file.is_dir():
        raise InputError(f"{name} is a folder", "name a file in it", Where(option))
    return file


def _references(pairs: Sequence[str]) -> dict[str, str]:
    references: dict[str, str] = {}
    for name, model in map(_pair, pairs):
        if name in references:
            raise InputError(f"{name!r} is given twice", "give each reference once", Where("--reference"))
        references[name] = model
    return references


def _pair(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not equals or not name or not model:
        raise InputError(f"{text!r} is not NAME=MODEL", "write for example base=models/base", Where("--reference"))
    return name, model


def run_quickstart(options: argparse.Namespace) -> int:
    from evomerge.demo.run import next_run, quickstart

    options.run_in_progress = next_run(Path(options.folder))[0]
    with _view() as observer:
        result = _call(quickstart, options, observer=observer)
    files = {"recipe": str(result.recipe), "checkpoint": str(result.checkpoint)} if result.checkpoint else {}
    code = _finish(options, result.search, files)
    if not options.json:
        print("\n".join(f"{what:11} {file}" for what, file in files.items()))
    return code


# Output


def _view() -> Any:
    from evomerge.report.console import PipeConsole
    from evomerge.report.live import view

    return view(PipeConsole(stderr=True))


def _show(table: Any) -> int:
    from evomerge.report.console import PipeConsole

    console = PipeConsole()
    if not sys.stdout.isatty():
        # A pipe has no width: wide enough that nothing is cut.
        console = PipeConsole(width=max(100, PipeConsole(width=10_000).measure(table).maximum))
    console.print(table)
    return DONE


def _say(text: str) -> int:
    print(text)
    return DONE


def _print(options: argparse.Namespace, data: Any, text: Callable[[], str] | None = None) -> int:
    print(json.dumps(data, indent=2) if options.json or text is None else text())
    return DONE


def complain(text: str, code: int, kind: str = "error") -> int:
    with suppress(OSError):  # the terminal may be closed
        print(f"{kind}: {text}", file=sys.stderr)
    return code
