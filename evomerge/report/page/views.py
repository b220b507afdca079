"""Lays the data of a page out as sections for people: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.numbers import number, span, telling, usual
from evomerge.report.page.blocks import Block, Cell, Chart, Code, Section, Table, Words
from evomerge.report.page.charts import models_chart, pairs_chart, trials_chart
from evomerge.report.page.details import cost_blocks, environment_blocks, genes_blocks, items_blocks, settings_blocks
from evomerge.report.page.trials import KINDS

Data = Mapping[str, Any]


def sections(data: Data) -> list[Section]:
    """All sections of the page of one run that have something to show."""
    found = [
        Section("verdict", "Verdict", verdict_blocks(data)),
        Section("models", "The merge against other models", _models(data)),
        Section("trials", "Objective over the trials", _trials(data)),
        Section("trade-offs", "One slice against another", _trade_offs(data)),
        Section("settings", "Settings of the merge", settings_blocks(data)),
        Section("genes", "Which genes matter", genes_blocks(data)),
        Section("cost", "What the search cost", cost_blocks(data)),
        Section("items", "Items that were lost and gained", items_blocks(data)),
        Section("recipe", "Recipe", recipe_blocks(data)),
        Section("environment", "Environment and fingerprints", environment_blocks(data)),
    ]
    return [section for section in found if section.blocks]


# The verdict


def verdict_blocks(data: Data) -> list[Block]:
    verdict = data["verdict"]
    blocks: list[Block] = [Words(verdict["reasons"], listed=True)]
    if verdict["gates"] and verdict["trial"] is not None:
        blocks.append(_gates(verdict, score_decimals(data)))
    return blocks


def score_decimals(data: Data) -> dict[str, int]:
    """Returns the decimals of each slice, with which no score on the page seems to be on the other side of its floor.
    Where a confidence bound is held to the floor, the score may be on either."""
    found = {}
    for gate in data["verdict"]["gates"]:
        sign = 1 if gate["higher_is_better"] else -1
        sides = {split: gate[split] for split in ("holdout", "search") if gate[split]}
        known = [(side, side["score"], side["passed"]) for side in sides.values() if side["score"] is not None]
        for model in data["models"]:
            score = model["scores"].get(gate["slice"])
            if score is not None and model["split"] in sides:
                known.append((sides[model["split"]], score["score"], score["passed"]))
        decimals = usual(score for _, score, _ in known)
        for side, score, passed in known * 2:  # more decimals for one score can make another one's too few
            if side["bound"] is None and passed is not None:
                decimals = telling(side["floor"], [(score, passed)], sign, decimals)
        found[gate["slice"]] = decimals
    return found


def _gates(verdict: Data, decimals: Mapping[str, int]) -> Table:
    splits = [s for s in ("holdout", "search") if any(gate[s] for gate in verdict["gates"])]
    heads = ["slice", *(head for s in splits for head in (f"{s} score", f"{s} gate"))]
    rows = [
        [_slice(g), *(cell for s in splits for cell in _side(g, g[s], decimals[g["slice"]]))] for g in verdict["gates"]
    ]
    notes = ["Search items steer the search; holdout items decide, and the search never sees them. In small print: the"
             " 95 % interval of a score, the floor of a gate and what it comes from."]  # fmt: skip
    if verdict["confidence"] is not None:
        share = f"{100 * verdict['confidence']:.4g} %"
        notes.append(f"On the holdout, the lower confidence bound ({share}) of a score has to reach its floor.")
    return Table(f"{verdict['label']}, gate by gate", heads, rows, notes)


def _slice(gate: Data) -> Cell:
    better = "higher" if gate["higher_is_better"] else "lower"
    return Cell(gate["slice"], f"{gate['metric']}, {better} is better" if gate["metric"] else "")


def _side(gate: Data, side: Data | None, decimals: int) -> list[Cell]:
    if side is None:
        return [Cell("-"), Cell("-")]
    sign = "≥" if gate["higher_is_better"] else "≤"
    floor = "" if side["floor"] is None else f"floor: {sign} {number(side['floor'], decimals)}"
    origin = f" ({side['floor_from']})" if side["floor_from"] and " " in side["floor_from"] else ""
    bound = "" if side["bound"] is None else f"; bound {number(side['bound'], decimals)}"
    between = span(side["interval"], decimals) if side["interval"] else ""
    passed = passed_cell(side["passed"], "no floor" if side["floor"] is None else "-")
    return [
        Cell(number(side["score"], decimals), f"{between}{bound}".removeprefix("; ")),
        Cell(passed.text, floor + origin if floor else "", passed.tone),
    ]


def passed_cell(passed: bool | None, unknown: str = "-") -> Cell:
    """Says in words whether a floor is passed."""
    if passed is None:
        return Cell(unknown)
    return Cell("✓ passes", tone="good") if passed else Cell("✗ misses", tone="bad")


# Models


def _models(data: Data) -> list[Block]:
    models, gates = data["models"], data["verdict"]["gates"]
    if not models or not gates:
        return []
    spec, height = models_chart(models, gates)
    notes = [
        "Dashed line: the floor. Filled points: holdout items; hollow points: search items, where the model has no"
        " holdout scores. A cross misses the floor. Lines: 95 % intervals."
    ]
    if len(gates) > len(spec["layout"]["annotations"]):
        notes.append(f"The first {len(spec['layout']['annotations'])} of {len(gates)} slices; the table has all.")
    label = (
        f"Scores of {len(models)} models on {len(gates)} slices, with floors and intervals; the table has the numbers."
    )
    chart = Chart(
        "chart-models",
        "Scores with 95 % intervals",
        label,
        spec,
        height,
        models_table(models, gates, score_decimals(data)),
        (),
        notes,
    )
    return [chart]


def models_table(models: Sequence[Data], gates: Sequence[Data], decimals: Mapping[str, int]) -> Table:
    """A row for each model, with the split that its scores are of."""
    heads = ["model", "items", *(g["slice"] for g in gates), "objective", "floors"]
    rows = []
    for model in models:
        role = "" if model["role"] in ("source", "base") else str(model["role"])
        cells: list[Cell | str] = [Cell(model["label"], "" if role == model["label"] else role), model["split"]]
        cells += [score_cell(model["scores"].get(g["slice"]), decimals[g["slice"]]) for g in gates]
        rows.append([*cells, number(model["objective"]), passed_cell(model["feasible"])])
    return Table("All models, slice by slice", heads, rows)


def score_cell(score: Data | None, decimals: int) -> Cell:
    """A score with its interval, marked where it misses its floor."""
    if score is None:
        return Cell("-")
    text, between = number(score["score"], decimals), span(score["interval"], decimals) if score["interval"] else ""
    return Cell(f"✗ {text}", between, "bad") if score["passed"] is False else Cell(text, between)


# Trials


def _trials(data: Data) -> list[Block]:
    trials = data["trials"]
    if not trials["trials"]:
        return []
    counts = {kind: sum(t["kind"] == kind for t in trials["trials"]) for kind in KINDS}
    said = ", ".join(f"{count} {KINDS[kind].partition(':')[0]}" for kind, count in counts.items() if count)
    best = trials["best_so_far"]
    label = f"The objective of {trials['count']} trials ({said})."
    if best:
        first, last = (f"{number(b['objective'])} (trial {b['trial']})" for b in (best[0], best[-1]))
        label += f" The best merge that passes every floor rose from {first} to {last}."
    objective = _objective(data["objective"])
    notes = [f"The search maximizes its objective on the search items: {objective}. A shape says what a trial is."]
    if counts["failed"]:
        notes.append("Failed trials have no score: they stand at the bottom.")
    if trials["left_out"]:
        notes.append(f"{trials['left_out']:,} of {trials['count']:,} trials are left out, at even steps.")
    rows = [
        [t["label"], KINDS[t["kind"]], number(t["objective"]), _best_at(best, t["trial"])] for t in trials["trials"]
    ]
    table = Table("Trials", ["trial", "what it is", "objective", "best so far"], rows, folded=True)
    spec = trials_chart(trials, data["verdict"]["trial"] if data["winner"] is not None else None)
    return [Chart("chart-trials", "Objective of each trial", label, spec, 420, table, (), notes)]


def _objective(name: str) -> str:
    words = {
        "mean": "the mean of the slices' scores",
        "weighted_mean": "the weighted mean of the slices' scores",
        "geometric_mean": "the geometric mean of the slices' scores",
        "min": "the worst of the slices' scores",
        "pareto": "none alone, since slices are traded off; this is the weighted mean of their scores",
    }
    return words.get(name, name)


def _best_at(best: Sequence[Data], trial: int) -> str:
    known = [b["objective"] for b in best if b["trial"] <= trial]
    return number(known[-1]) if known else "-"


def _trade_offs(data: Data) -> list[Block]:
    trials, gates = data["trials"], data["verdict"]["gates"]
    scored = [t for t in trials["trials"] if t["scores"]]
    if len(gates) < 2 or not scored:
        return []
    names = [g["slice"] for g in gates]
    choices = [("across", names), ("up", names)] if len(names) > 2 else []
    label = "Each trial's search scores on two slices, with their floors and the trials that no other one dominates."
    notes = [
        "Dashed lines: floors. The line joins the trials that no other trial beats on both slices (the Pareto front);"
        " predicted scores are not on it."
    ]
    if trials["traded"]:
        points = ", ".join(str(number) for number in trials["front"]) or "none yet"
        notes.append(f"The front of this search, over {', '.join(trials['traded'])}: trials {points}.")
    rows = [[t["label"], KINDS[t["kind"]], *(number(t["scores"].get(n)) for n in names)] for t in scored]
    table = Table("Search scores of the trials", ["trial", "what it is", *names], rows, folded=True)
    spec = pairs_chart(trials, gates, data["winner"])
    return [Chart("chart-pairs", "Search scores, slice against slice", label, spec, 460, table, choices, notes)]


# The recipe


def recipe_blocks(data: Data, suffix: str = "") -> list[Block]:
    """The recipe with a button to copy it, and the commands that rebuild it."""
    recipe = data["recipe"]
    if recipe is None:
        return []
    lines = [f"The recipe of {data['verdict']['label']}, as mergekit YAML."]
    if recipe["models_by_name_only"]:
        names = ", ".join(recipe["models_by_name_only"])
        lines.append(
            f"Paths of the machine are left out: {names} stands for a folder outside of the run's; `evomerge export`"
            " writes the recipe with its places."
        )
    blocks: list[Block] = [Words(lines)]
    if recipe["yaml"] is None:
        blocks.append(Words(["It is too long for a page."]))
    else:
        blocks.append(Code(f"recipe-yaml{suffix}", "Recipe", recipe["yaml"]))
    blocks.append(Code(f"commands{suffix}", "Rebuild it, bit for bit", "\n".join(recipe["commands"])))
    return blocks
