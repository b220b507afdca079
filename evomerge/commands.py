"""Runs each command: calls the public function of its name, prints the result, chooses the exit code.

Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evomerge.answers import DONE, INTERRUPTED, NO, call, complain, end, print_data, show, view
from evomerge.arguments import listed, named_models
from evomerge.errors import InputError, Where
from evomerge.evaluator.device import choose_device
from evomerge.examine.align import align
from evomerge.examine.doctor import doctor, glance
from evomerge.examine.evaluate import evaluate
from evomerge.examine.extract import extract
from evomerge.examine.findings.finding import Finding
from evomerge.examine.path import PathInterrupted, path
from evomerge.outputs import output_file, save
from evomerge.recipe.recipe import Recipe
from evomerge.report.dry_run import dry_run_lines
from evomerge.report.figures import FORMATS, draw_path
from evomerge.safety.durable import write_whole
from evomerge.safety.paths import seen_from_here
from evomerge.study.dry_run import dry_run
from evomerge.study.run.folder import STARTERS, RunFolder
from evomerge.study.run.items import save_items


def run_check(options: argparse.Namespace) -> int:
    figure = output_file(options.figure, "--figure", FORMATS, read=options.models)
    # numpy takes a moment to import.
    from evomerge.examine.check import check
    from evomerge.report.checks import check_data, check_lines, check_tables
    from evomerge.report.heat_map import draw_heat_map

    with view() as observer:
        result = call(check, options, observer=observer)
    unsaved = []
    if (deltas := result.deltas) is not None and deltas.tensors:
        unsaved = save(figure, lambda file: draw_heat_map(deltas, file))
    if options.json:
        drawn = deltas is not None and deltas.tensors and not unsaved
        print_data(options, {**check_data(result), "figure": options.figure if drawn else None})
    else:
        show(*check_tables(result), *check_lines(result))
    return end(DONE if result.mergeable else NO, unsaved)


def run_init(options: argparse.Namespace) -> int:
    asks = not options.tasks and options.fitness is None and options.from_mergekit_evolve is None
    if asks and sys.stdin.isatty() and not options.json:
        options.tasks = listed(_asked("Tasks (names of lm-eval's, or task files, with commas between them): "))
    # numpy takes a moment to import.
    from evomerge.examine.init import init

    with view() as observer:
        result = call(init, options, observer=observer)
    space, fitness = (os.path.relpath(file) for file in (result.space, result.fitness))
    facts = {"space": space, "fitness": fitness, "genes": result.genes}
    facts |= {"notes": list(result.notes)} if options.from_mergekit_evolve is not None else {}
    written = f"wrote {space}" + ("" if options.fitness else f" and {fitness}")
    then = f"next: `evomerge search {shlex.quote(space)} --dry-run`, then without"
    lines = [*result.notes, f"{written} ({result.genes} searched values)", then]
    return print_data(options, facts, lambda: lines)


def _asked(question: str) -> str:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def run_search(options: argparse.Namespace) -> int:
    if len(options.space) == 1 and not options.tasks:
        options.space = options.space[0]
        return _search(options)
    return _search_models(options)


def _search_models(options: argparse.Namespace) -> int:
    """Searches models without a space file: writes one into the run first, where it stays."""
    base, *sources = options.space
    if Path(base).suffix in (".yaml", ".yml"):
        if sources:
            raise InputError(f"evomerge search: {sources[0]!r} is one word too many", "see `evomerge search --help`")
        raise InputError("--tasks goes with a base and its sources", f"name tasks in the fitness file of {base}")
    if not sources:
        raise InputError("one model is no merge", "give a base and at least one source", Where("SOURCE"))
    # numpy takes a moment to import.
    from evomerge.examine.init import init, run_name

    folder = RunFolder.launched(options.run or run_name(sources), options.run or "")
    options.run = str(folder.path)
    with ExitStack() as stack:
        place = folder.path
        if options.dry_run:
            place = Path(stack.enter_context(TemporaryDirectory()))
        else:
            place.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_empty, place)
        files = {"tasks": options.tasks, "trials": options.trials, "fitness": options.fitness}
        with view() as observer:
            init(base, sources, output=place / STARTERS[0], force=True, allow_pickle=options.allow_pickle,
                 observer=observer, **files)  # fmt: skip
        options.space, options.fitness = str(place / STARTERS[0]), None
        return _search(options)


def _remove_empty(folder: Path) -> None:
    """Removes the folder of a run that came to nothing."""
    with suppress(OSError):
        folder.rmdir()


def _search(options: argparse.Namespace) -> int:
    if options.full:
        options.settings = [*options.settings, "fitness.pruning=false"]
    if options.dry_run:
        return _dry_run(options)
    options.run_in_progress = RunFolder.launched(options.run, options.space).path
    from evomerge.study.search import search

    with view() as observer:
        result = call(search, options, observer=observer)
    return _finish(options, result)


def _dry_run(options: argparse.Namespace) -> int:
    facts = call(dry_run, options)
    return print_data(options, facts, lambda: dry_run_lines(facts))


def run_resume(options: argparse.Namespace) -> int:
    from evomerge.study.search import resume

    options.run_in_progress = options.run
    with view() as observer:
        result = call(resume, options, observer=observer)
    return _finish(options, result)


def _finish(options: argparse.Namespace, result: Any, files: dict[str, str] | None = None) -> int:
    """Prints the end of a search: the table, and what to do next."""
    from evomerge.report import data, diagnosis, gains, verdicts
    from evomerge.report.shown import plain

    found = _glance(options, result.winner.recipe) if result.winner is not None else ()
    gained = [gains.gained_table(result.gained)] if result.gained is not None else []
    table, *words = verdicts.ending(result)
    seen_in = [f"seen in the winner: {diagnosis.finding_line(finding)}" for finding in found]
    told = [table, *gained, *words, *seen_in]
    for line in save(result.folder.summary, lambda file: write_whole(file, plain(*told))):
        complain(line, DONE, "warning")
    if options.json:
        seen = {"findings": diagnosis.findings_data(found)}
        print_data(options, {**data.result_data(result), **seen, **(files or {})})
    else:
        show(*told)
    return DONE if result.winner else NO


def _glance(options: argparse.Namespace, winner: Recipe) -> tuple[Finding, ...]:
    """What a look at the winner finds. A look that fails costs nothing of a search that is done."""
    with view() as observer:
        try:
            return call(glance, options, recipe=winner, observer=observer)
        except Exception as error:
            observer.warn(f"the winner was not looked at: {error}")
    return ()


def run_evaluate(options: argparse.Namespace) -> int:
    from evomerge.report import tables
    from evomerge.report.data import as_json, evaluated_data
    from evomerge.report.models.replies import reply_tables

    read = [options.model, options.fitness]
    items = output_file(options.items, "--items", (".jsonl", ".parquet"), read=read)
    output = output_file(options.output, "--output", read=[*read, options.items])
    references = named_models(options.references)
    with view() as observer:
        result = call(evaluate, options, references=references, observer=observer)
    data = evaluated_data(result)
    unsaved = save(output, lambda file: write_whole(file, as_json(data) + "\n"))
    unsaved += save(items, lambda file: save_items(file, {name: s.items for name, s in result.scores.items()}))
    if options.json:
        print_data(options, data)
    else:
        missed = ", ".join(v.slice for v in result.verdicts if not v.passed)
        show(tables.evaluated_table(result), f"misses the floor of {missed}" if missed else "passes every floor")
        show(*tables.eval_results_words(result), *reply_tables(result.replies))
    return end(DONE if result.feasible else NO, unsaved)


def run_doctor(options: argparse.Namespace) -> int:
    from evomerge.report.data import as_json
    from evomerge.report.diagnosis import diagnosis_data, diagnosis_words

    output = output_file(options.output, "--output", read=[options.model, options.fitness])
    with view() as observer:
        result = call(doctor, options, observer=observer)
    data = diagnosis_data(result)
    unsaved = save(output, lambda file: write_whole(file, as_json(data) + "\n"))
    if options.json:
        print_data(options, data)
    else:
        show(*diagnosis_words(result))
    return end(DONE if result.healthy else NO, unsaved)


def run_path(options: argparse.Namespace) -> int:
    from evomerge.report.paths import path_data, path_summary, path_table

    figure = output_file(options.output, "--output", FORMATS)
    references = named_models(options.references)
    try:
        with view() as observer:
            result = call(path, options, references=references, observer=observer)
    except PathInterrupted as stop:
        result = stop.partial
    unsaved = save(figure, lambda file: draw_path(result, file))
    if options.json:
        print_data(options, {**path_data(result), "figure": None if unsaved else options.output})
    else:
        show(path_table(result), *path_summary(result), *([] if unsaved else [f"wrote {options.output}"]))
    code = end(DONE if result.feasible else NO, unsaved)
    if not result.complete:
        return complain(f"{len(result.points)} of {len(result.wanted)} points are scored", INTERRUPTED, "interrupted")
    return code


def run_align(options: argparse.Namespace) -> int:
    from evomerge.report.models.alignments import alignment_data, alignment_summary, alignment_table

    with view() as observer:
        result = call(align, options, observer=observer)
    if options.json:
        return print_data(options, {**alignment_data(result), "written": options.out})
    return show(alignment_table(result), *alignment_summary(result), f"wrote {options.out}")


def run_extract(options: argparse.Namespace) -> int:
    with view() as observer:
        result = call(extract, options, device=choose_device(options.device), observer=observer)
    from evomerge.merging.disk.as_adapter import adapter_words
    from evomerge.report.models.extractions import extraction_data, extraction_table

    if options.json:
        return print_data(options, {**extraction_data(result), "written": options.out})
    return show(extraction_table(result), *adapter_words(result), f"wrote {options.out}")


def run_quickstart(options: argparse.Namespace) -> int:
    from evomerge.demo.run import next_run, quickstart

    options.run_in_progress = next_run(Path(options.folder))[0]
    with view() as observer:
        result = call(quickstart, options, observer=observer)
    files = {"recipe": str(result.recipe), "checkpoint": str(result.checkpoint)} if result.checkpoint else {}
    code = _finish(options, result.search, files)
    if not options.json:
        show(*(f"{what:11} {seen_from_here(Path(file))}" for what, file in files.items()))
    return code
