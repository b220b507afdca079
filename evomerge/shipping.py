"""The commands that write what is published, a recipe or a checkpoint, or check it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from evomerge.answers import DONE, NO, call, print_data, show, view
from evomerge.arguments import named_models
from evomerge.checkpoints.write import check_target
from evomerge.errors import InputError
from evomerge.escape import printable
from evomerge.evaluator.device import choose_device
from evomerge.examine.reproduce import reproduce
from evomerge.recipe.mergekit import read_recipe
from evomerge.safety.paths import absolute


def run_export(options: argparse.Namespace) -> int:
    from evomerge.study.after.export import export

    if options.checkpoint is None:
        text = call(export, options)
    else:
        check_target(absolute(options.checkpoint), options.overwrite)
        options.device = choose_device(options.device)
        with view() as observer:
            text = call(export, options, progress=observer.progress, note=observer.note)
    if options.json:
        written = {"recipe": text, "file": options.output, "checkpoint": options.checkpoint}
        return print_data(options, {**written, "pushed": options.push_to_hub})
    if options.checkpoint is not None:
        show(f"wrote {options.checkpoint}")
    elif options.output is None:
        print(text, end="")
    if options.output is not None:
        line = f"wrote {options.output}; `evomerge merge {options.output} OUT_DIR` makes the checkpoint"
        print(printable(line), file=sys.stderr)
    return DONE


_MERGE_HELP = "see `evomerge merge --help`"


def run_merge(options: argparse.Namespace) -> int:
    # What can be told now is told before torch is imported.
    out = _merged_folder(options)
    recipe = read_recipe(Path(options.recipe))
    if out is None:
        # Where all documents have names, the last one's output stands beside the others, as with mergekit-multi
        if recipe.output.name is None:
            raise InputError("evomerge merge: needs OUT_DIR", _MERGE_HELP)
        out = str(Path(options.intermediate) / recipe.output.name)
    options.out = out
    recipe.check_places()
    check_target(absolute(options.out), options.overwrite)
    if options.hub_cache is not None:
        os.environ["HF_HUB_CACHE"] = str(absolute(options.hub_cache))  # read once, when the hub's library is imported
    from evomerge.merging.disk.stream import merge

    device = choose_device("cuda" if options.cuda else options.device)
    with view() as observer:
        progress, note = (None, None) if options.quiet else (observer.progress, observer.note)
        folder = call(merge, options, device=device, progress=progress, note=note)
    written = {"checkpoint": str(folder), "pushed": options.push_to_hub}
    return print_data(options, written, lambda: [f"wrote {folder}"])


def _merged_folder(options: argparse.Namespace) -> str | None:
    """The folder that a merge is told to write, as OUT_DIR or --out-path; None where the documents' names may tell
    it."""
    given: list[str] = [folder for folder in (options.out, options.out_path) if folder is not None]
    if len(given) > 1:
        raise InputError("evomerge merge: OUT_DIR and --out-path are two folders", "give one of them")
    if not given and options.intermediate is None:
        raise InputError("evomerge merge: needs OUT_DIR", _MERGE_HELP)
    return given[0] if given else None


def run_reproduce(options: argparse.Namespace) -> int:
    from evomerge.report.models.reproduced import reproduced_data, reproduced_table, reproduced_words

    options.device = choose_device(options.device)
    models = named_models(options.models, "--models")
    with view() as observer:
        result = call(reproduce, options, models=models, observer=observer)
    if options.json:
        print_data(options, reproduced_data(result))
    else:
        show(reproduced_table(result), *reproduced_words(result))
    return DONE if result.equal else NO
