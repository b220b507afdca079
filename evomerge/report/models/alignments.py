"""Shows what an alignment moved, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from evomerge.merging.permutation.alignment import AlignedGroup, Alignment
from evomerge.merging.permutation.sequential import CHAIN
from evomerge.report.shown import Cell, Column, Row, Sheet


def alignment_table(result: Alignment) -> Sheet:
    """Builds a table: one row a group of units."""
    columns = [Column("units"), Column("moved"), Column("before", "cosine"), Column("after", "cosine")]
    rows = [Row([group.name], _cells(group)) for group in result.groups]
    rows[-1:] = [Row([result.groups[-1].name], _cells(result.groups[-1]), ends=True)] if rows else []
    rows.append(
        Row(["all"], [Cell(""), Cell(_share(result.moved)), Cell(f"{result.before:.4f}"), Cell(f"{result.after:.4f}")])
    )
    return Sheet(f"{result.other}, aligned with {result.one}", ["group"], columns, rows)


def alignment_summary(result: Alignment) -> list[str]:
    """Says how the units were matched, and that nothing changed."""
    by = "by their weights" if result.method == "weights" else "by their activations"
    passes = f" in {result.passes} pass{'es' if result.passes != 1 else ''}" if result.method == "weights" else ""
    lines = [f"matched {by}{passes}, specification {result.specification}"]
    if not result.moved:
        lines.append("nothing had to move: the units of both stand in one order already")
    if result.change is not None:
        lines.append(f"same function: log-probabilities of random tokens differ by {result.change:.1e} at most")
    elif result.specification.startswith(f"{CHAIN} "):
        lines.append(
            "this order was read from names and shapes: where a connection skips a layer, or a convolution is grouped "
            "or transposed, it computes something else"
        )
    else:
        lines.append("that it computes the same was not measured: it is large, or no language model of transformers")
    return lines


def alignment_data(result: Alignment) -> dict[str, Any]:
    """Returns all but the permutations themselves."""
    return {
        "reference": result.one,
        "model": result.other,
        "specification": result.specification,
        "method": result.method,
        "passes": result.passes,
        "moved": result.moved,
        "cosine": {"before": result.before, "after": result.after},
        "largest_change": result.change,
        "groups": [asdict(group) for group in result.groups],
    }


def _cells(group: AlignedGroup) -> list[Cell]:
    units = f"{group.units}" if group.members == group.units else f"{group.units} of {group.members // group.units}"
    return [Cell(units), Cell(_share(group.moved)), Cell(f"{group.before:.4f}"), Cell(f"{group.after:.4f}")]


def _share(moved: float) -> str:
    return f"{moved:.0%}" if moved in (0, 1) or moved >= 0.01 else "<1%"
