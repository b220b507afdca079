"""Lays two runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.numbers import number
from evomerge.report.page.blocks import Block, Cell, Chart, Columns, Section, Table
from evomerge.report.page.charts import runs_chart
from evomerge.report.page.trials import KINDS
from evomerge.report.page.views import recipe_blocks, score_cell, score_decimals, verdict_blocks

Data = Mapping[str, Any]


def compared_sections(first: Data, second: Data) -> list[Section]:
    """Verdicts, the merges slice by slice, the objective over the trials in one chart, and the recipes of two runs."""
    runs = [(f"{first['run']}", first), (f"{second['run']}", second)]
    if first["run"] == second["run"]:
        runs = [(f"{first['run']} (first)", first), (f"{second['run']} (second)", second)]
    verdicts = [(f"{name}: {data['verdict']['headline']}", verdict_blocks(data)) for name, data in runs]
    recipes = [(name, recipe_blocks(data, f"-{at}")) for at, (name, data) in enumerate(runs)]
    return [
        Section("compared-verdicts", "Two runs: verdicts", [Columns(verdicts)]),
        Section("compared-scores", "Two runs: slice by slice", [_scores(runs)]),
        Section("compared-trials", "Two runs: objective over the trials", _trials(runs)),
        Section("compared-recipes", "Two runs: recipes", [Columns(recipes)]),
    ]


def _scores(runs: Sequence[tuple[str, Data]]) -> Table:
    names = list(dict.fromkeys(gate["slice"] for _, data in runs for gate in data["verdict"]["gates"]))
    merges = [(name, data["models"][-1] if data["models"] else None) for name, data in runs]
    decimals = [score_decimals(data) for _, data in runs]
    heads = ["slice", *(f"{name}: {merge['label']}, {merge['split']}" if merge else name for name, merge in merges)]
    rows = [[name, *(_cell(m, name, d) for (_, m), d in zip(merges, decimals, strict=True))] for name in names]
    rows.append(["objective", *(number(merge["objective"]) if merge else "-" for _, merge in merges)])
    notes = ["In small print: 95 % intervals. Two runs may have other items: scores of one slice compare only where"
             " its items are the same."]  # fmt: skip
    if _same_items(runs):
        notes = ["In small print: 95 % intervals. Both runs have the same items."]
    return Table("The merge of each run", heads, rows, notes)


def _same_items(runs: Sequence[tuple[str, Data]]) -> bool:
    digests = [data["environment"]["items"] for _, data in runs]
    return bool(digests[0]) and digests[0] == digests[1]


def _cell(merge: Data | None, name: str, decimals: Mapping[str, int]) -> Cell:
    score = merge["scores"].get(name) if merge else None
    return Cell("-") if score is None else score_cell(score, decimals[name])


def _trials(runs: Sequence[tuple[str, Data]]) -> list[Block]:
    spec = runs_chart([(name, data["trials"]) for name, data in runs])
    if not spec["data"]:
        return []
    rows = [
        [f"{name}, {t['label']}", KINDS[t["kind"]], number(t["objective"])]
        for name, data in runs
        for t in data["trials"]["trials"]
        if t["kind"] in ("feasible", "infeasible")
    ]
    table = Table("Trials of both runs", ["trial", "what it is", "objective"], rows, folded=True)
    label = f"The objective over the trials of {runs[0][0]} and {runs[1][0]}, with the best so far of each."
    return [Chart("chart-runs", "Objective of both runs", label, spec, 440, table)]
