"""The later sections of a page: settings, genes, cost, items, environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.numbers import clock
from evomerge.report.page.blocks import Block, Cell, Chart, Items, Table, Words
from evomerge.report.page.charts import column_name as of_column
from evomerge.report.page.charts import heat_map, importance_chart

Data = Mapping[str, Any]

SPLIT_WORDS = {"search": "search items", "holdout": "holdout items"}
SHOWN_CELLS = 2000
"""Cells of a heat map whose numbers stand in a table."""


# Settings and genes


def settings_blocks(data: Data) -> list[Block]:
    weights = data["weights"]
    if weights is None:
        return []
    methods = {m["method"] for m in weights["methods"]}
    blocks: list[Block] = []
    if len(methods) == 1:
        blocks.append(Words([f"{data['verdict']['label']} merges by `{next(iter(methods))}`."]))
    else:
        rows = [[m["layers"], m["method"]] for m in weights["methods"]]
        blocks.append(Table("Merge methods", ["layers", "method"], rows))
    for at, (name, grid) in enumerate(weights["parameters"].items()):
        blocks.append(_grid(at, name, grid))
    return blocks


def _grid(at: int, name: str, grid: Data) -> Block:
    columns = [of_column(c) for c in grid["columns"]]
    rows = [[layer, *map(_setting, row)] for layer, row in zip(grid["layers"], grid["values"], strict=True)]
    size = len(rows) * len(columns)
    table = Table(f"{name}, by layer and source", ["layers", *columns], rows, folded=True)
    if size > SHOWN_CELLS:
        step = -(-size // SHOWN_CELLS)
        table = Table(f"{table.caption}, every {step}th row", table.heads, rows[::step], folded=True)
    if size < 3 or len({v for row in grid["values"] for v in row}) == 1:
        return Table(f"{name}, by layer and source", table.heads, rows)
    notes = ["The mean over modules: there are too many numbers for a page."] if grid["mean_over_modules"] else []
    notes.append("Layers from the first at the top to the last; a column is a source, or a module of it.")
    spec, height = heat_map(grid)
    label = f"Heat map of {name}: {len(rows)} rows of layers, {len(columns)} columns of sources and modules."
    return Chart(f"chart-setting-{at}", name, label, spec, height, table, (), notes)


def _setting(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def genes_blocks(data: Data) -> list[Block]:
    importance = data["importance"]
    if importance is None:
        return []
    effects = importance["effects"]
    spec, height = importance_chart(effects)
    around = f"trial {importance['around']}"
    words = [
        "How much the objective changes, as the model of the default optimizer (a Gaussian process) has it, when one"
        " gene goes from its low to its high tried values (10th to 90th percentile), and all others stay as in"
        f" {around}. The model is fitted to the {importance['trials']} best trials.",
        f"{importance['clear']} of {importance['genes']} genes have an effect whose 95 % interval has no 0; with many"
        " genes, one in twenty does so by chance."
        + (f" The {len(effects)} largest effects are shown." if importance["genes"] > len(effects) else ""),
    ]
    rows: list[list[Cell | str]] = [
        [Cell(e["gene"], e.get("options", "")), f"{e['effect']:+.4f}", " to ".join(f"{v:+.4f}" for v in e["interval"])]
        for e in effects
    ]
    table = Table("Effects", ["gene", "effect on the objective", "95 % interval"], rows, folded=True)
    label = f"Effects of {len(effects)} genes on the objective, largest first, with 95 % intervals."
    return [Words(words), Chart("chart-genes", "Effect of each gene", label, spec, height, table)]


# Cost


def cost_blocks(data: Data) -> list[Block]:
    cost = data["cost"]
    states, phases, timed = cost["states"], cost["phases"], cost["timed"]
    rows: list[list[Cell | str]] = [
        ["trials that ended", Cell(f"{cost['trials']:,}", _states(cost))],
        ["time of evaluation", Cell(clock(cost["seconds"]), f"on {cost['device']}{_workers(cost['workers'])}")],
    ]
    if timed:
        rows += [
            [f"{what}, each candidate", Cell(f"{phases[phase] / timed:.3g} s", f"{clock(phases[phase])} in all")]
            for what, phase in (("merging", "materialize"), ("scoring", "score"))
        ]
    items = cost["items"]
    if items["in_full"]:
        share = f"{100 * items['scored'] / items['in_full']:.0f} % of the {items['in_full']:,} of all candidates"
        rows.append(["items scored", Cell(f"{items['scored']:,}", share)])
    for what, key in (("racing", "racing"), ("early stops", "early_stop")):
        if cost[key]["trials"]:
            in_trials = f"in {cost[key]['trials']} candidates"
            rows.append([f"items saved by {what}", Cell(f"{cost[key]['saved']:,}", in_trials)])
    if items["saved"] and cost["seconds_saved"]:
        rows.append(["time saved so, about", Cell(clock(cost["seconds_saved"]), "at the mean time of an item")])
    if states.get("failed"):
        rows.append(["failed candidates", str(states["failed"])])
    blocks: list[Block] = [Table("Cost", ["what", "how much"], rows)]
    if cost["failed"]:
        reasons = [[f["label"], f["reason"]] for f in cost["failed"]]
        blocks.append(Table("Why candidates failed", ["trial", "reason"], reasons))
    return blocks


def _workers(count: int) -> str:
    return f", {count} workers" if count > 1 else ""


def _states(cost: Data) -> str:
    parts = [f"{cost['references']} of them references"] if cost["references"] else []
    words = {"complete": "scored in full", "pruned": "pruned", "failed": "failed"}
    parts += [f"{cost['states'][state]} {word}" for state, word in words.items() if cost["states"].get(state)]
    parts += [f"{cost['duplicates']} repeated another one"] if cost["duplicates"] else []
    return ", ".join(parts)


# Items


def items_blocks(data: Data) -> list[Block]:
    items = data["items"]
    if items is None or not items["slices"]:
        return []
    words = [
        f"Compared on the {SPLIT_WORDS[items['split']]}: {data['verdict']['label']} against base and sources. Better"
        " is right against wrong, where a slice has right and wrong answers, else the better score."
    ]
    counted: list[list[Cell | str]] = [
        [Cell(part["slice"], parent), str(n["items"]), str(n["merge_better"]), str(n["parent_better"])]
        for part in items["slices"]
        for parent, n in part["parents"].items()
    ]
    heads = ["slice, parent", "items of both", "merge better", "parent better"]
    blocks: list[Block] = [Words(words), Table("Who is better on how many items", heads, counted)]
    if not items["with_texts"]:
        blocks.append(Words(["This run kept no texts of its items (older runs have none): they are named only."]))
    for part in items["slices"]:
        lost, shown = part["lost"], len(part["items"])
        what = "wrong, and a parent right" if part["right_or_wrong"] else "worse than a parent"
        gained = f"On {part['gained']} it is better than every parent."
        of = f" Shown: {shown}." if shown < lost else ""
        blocks.append(
            Words([f"{part['slice']}: the merge is {what} on {lost} of {part['items_of_merge']} items. {gained}{of}"])
        )
        if part["items"]:
            blocks.append(Items([item_entry(item, part["right_or_wrong"]) for item in part["items"]]))
    return blocks


def item_entry(item: Data, right_or_wrong: bool) -> dict[str, Any]:
    """One item as the template shows it."""
    place = f"Item {item['number'] + 1}" if item["number"] is not None else f"Item {item['item']}"
    right = [parent for parent, p in item["parents"].items() if p["better"]]
    rows = [_answer("the merge", item["merge"])] + [_answer(name, p) for name, p in item["parents"].items()]
    return {
        "heading": f"{place}: {'right' if right_or_wrong else 'better'} in {', '.join(right)}",
        "item": item["item"],
        "prompt": item["prompt"],
        "choices": item["choices"],
        "right_answer": item["right_answer"],
        "answers": rows,
    }


def _answer(name: str, given: Data) -> list[str]:
    wrote = [] if given["written"] is None else [f"wrote: {given['written']}"]
    score = "-" if given["score"] is None else f"{given['score']:.4g}"
    return [name, score, "\n".join([given["answer"] or "-", *wrote])]


def environment_blocks(data: Data) -> list[Block]:
    found = data["environment"]
    versions = [[name, text] for name, text in found["versions"].items()]
    models = [[name, m["reference"], Cell(m["fingerprint"][:16])] for name, m in found["models"].items()]
    items = [[name, digest[:16]] for name, digest in found["items"].items()]
    optimizer = [[key, str(value)] for key, value in found["optimizer"].items()]
    blocks: list[Block] = [
        Table("Versions at the launch", ["package", "version"], [*versions, ["device", found["device"]]])
    ]
    if optimizer:
        blocks.append(Table("Optimizer", ["setting", "value"], optimizer))
    if models:
        notes = ["The first 16 of 64 digits; `--json` has all."]
        blocks.append(Table("Models", ["name", "model", "fingerprint"], models, notes))
    if items:
        blocks.append(Table("Items", ["slice", "digest of its items"], items))
    return blocks
