"""Tries every layout and writes what came of it, with the versions: `python -m tests.families [-o FILE] [NAME...]`.

With the environment variable MERGEKIT, the path of the `mergekit-yaml` of mergekit 0.1.5, tensors are compared with it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.families.columns import Mergekit, Row
    from tests.families.layouts import Layout

PAGE = Path(__file__).with_name("page.md")


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    arguments.add_argument("names", nargs="*", help="families, kinds or rows; default: all")
    arguments.add_argument("-o", "--output", type=Path, help="the page to write; default: docs/models.md for all rows")
    arguments.add_argument(
        "--record", type=Path, help="keep outcomes in this file; what is whole there is not run again"
    )
    options = arguments.parse_args()
    _quietly()
    from tests.families.columns import COLUMNS, mergekit
    from tests.families.layouts import layouts

    wanted = set(options.names)
    chosen = [x for x in layouts() if not wanted or wanted & {x.name, x.kind, x.family}]
    kept = _recorded(options.record)
    theirs = mergekit()
    rows: list[Row] = []
    for layout in chosen:
        row = kept.get(layout.name)
        if row is None or not row.whole:
            row = _run(layout, theirs)
            if options.record is not None:
                with options.record.open("a") as file:
                    print(json.dumps([layout.name, row.seconds, {k: vars(v) for k, v in row.found.items()}]), file=file)
        rows.append(row)
        states = " ".join(f"{column} {row.found[column].state}" for column in COLUMNS)
        print(f"{layout.name:36} {'whole' if row.whole else 'NOT  '} {row.seconds:5.1f} s  {states}", flush=True)
        for column, why in row.reasons().items():
            print(f"    {column}: {why}", flush=True)
    if theirs is not None:
        theirs.close()
    seconds = sum(row.seconds for row in rows)
    print(f"{sum(row.whole for row in rows)} of {len(rows)} layouts are whole, {seconds:.0f} s")
    output = options.output or (None if wanted else Path(__file__).parents[2] / "docs" / "models.md")
    if output is not None:
        output.write_text(_page(rows, seconds, theirs is not None))
    sys.exit(0 if all(row.whole for row in rows) else 1)


def _run(layout: Layout, theirs: Mergekit | None) -> Row:
    from tests.families.columns import Trial

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        row = Trial(layout, Path(folder).resolve(), theirs).run()
        row.seconds = time.monotonic() - began
    return row


def _recorded(file: Path | None) -> dict[str, Row]:
    """The latest outcome of each layout in a file of `--record`."""
    from tests.families.columns import Found, Row
    from tests.families.layouts import layouts

    rows, known = dict[str, Row](), {layout.name: layout for layout in layouts()}
    for line in file.read_text().splitlines() if file is not None and file.exists() else ():
        name, seconds, found = json.loads(line)
        if name in known:
            rows[name] = Row(known[name], {column: Found(**what) for column, what in found.items()}, seconds)
    return rows


def _quietly() -> None:
    """Before anything heavy is imported: one thread, no network, no bars; what is kept for later is not."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ["EVOMERGE_CACHE"] = tempfile.mkdtemp()
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)


def _page(rows: list[Row], seconds: float, compared: bool) -> str:
    from tests.families.columns import COLUMNS

    head = ["family", "kind", "form", *COLUMNS]
    table = [head, ["---"] * len(head)]
    table += [[r.layout.family, r.layout.kind, r.layout.form, *(r.found[c].state for c in COLUMNS)] for r in rows]
    kinds = dict.fromkeys(r.layout.kind for r in rows)
    parts = [f"{_count(rows, kind, True)} of {_count(rows, kind, False)} {kind}" for kind in kinds]
    same = sum(r.found["parity"].state in ("yes", "fused") for r in rows)
    without = sum(r.found["parity"].state == "-" for r in rows)
    said = f"mergekit gives the same tensors for {same}, and cannot merge {without}." if compared else ""
    return PAGE.read_text().format(
        mergekit="0.1.5",
        rows=len(rows),
        whole=sum(r.whole for r in rows),
        kinds=", ".join(parts),
        parity=said,
        versions=", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "lm_eval")
        ),
        minutes=seconds / 60,
        machine=platform.machine(),
        table="\n".join(f"| {' | '.join(cells)} |" for cells in table),
        reasons="\n".join(_reasons(rows, {"no", "refused"})) or "Nothing.",
        unmerged="\n".join(_reasons(rows, {"-"})) or "Nothing.",
    )


def _count(rows: Iterable[Row], kind: str, whole: bool) -> int:
    return sum(r.layout.kind == kind and (r.whole or not whole) for r in rows)


def _reasons(rows: Iterable[Row], states: set[str]) -> list[str]:
    """A line for each reason of outcomes of these states, with the rows that have it."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for column, why in row.reasons().items():
            if row.found[column].state not in states:
                continue
            text = " ".join(why.replace("|", "/").replace("<", "&lt;").split())
            found.setdefault(f"*{column}*: {text}", []).append(row.layout.name)
    return [f"- {', '.join(names)}. {why}" for why, names in found.items()]


if __name__ == "__main__":
    main()
