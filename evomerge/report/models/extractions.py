"""Shows what an adapter holds of a change, as a table and as JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evomerge.merging.disk.adapter import AdaptedTensor, AdapterContent
from evomerge.report.shown import Cell, Column, Row, Sheet


def extraction_table(content: AdapterContent) -> Sheet:
    """Builds a table: one row a tensor that changed."""
    columns = [Column("change", "norm"), Column("lacking", "of it")]
    rows = [Row([tensor.module or tensor.name], _cells(tensor)) for tensor in content.adapted]
    rows[-1:] = [replace(row, ends=True) for row in rows[-1:]]
    rows.append(Row(["all"], [Cell(f"{content.norm:.4g}"), Cell(f"{content.error:.2%}")]))
    return Sheet(f"a LoRA adapter of rank {content.rank}", ["module"], columns, rows)


def extraction_data(content: AdapterContent) -> dict[str, Any]:
    """Returns the same as data."""
    return {
        "rank": content.rank,
        "norm": content.norm,
        "error": content.error,
        "error_by_rank": {str(rank): error for rank, error in content.by_rank.items()},
        "tensors": {
            tensor.name: {"module": tensor.module, "norm": tensor.norm, "error": tensor.relative}
            for tensor in content.adapted
        },
    }


def _cells(tensor: AdaptedTensor) -> list[Cell]:
    held = "whole" if tensor.module is not None and not tensor.energy else f"{tensor.relative:.2%}"
    return [Cell(f"{tensor.norm:.4g}"), Cell(held)]
