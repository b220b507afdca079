"""Per-item scores of every trial in Parquet, so that a re-weighting or a paired test needs no model.

A trial that is scored in parts has a file for each: ``trial-00007.search.parquet``, ``trial-00007.search.1.parquet``,
and so on. A later part's item stands for an earlier one's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.interrupts import deferred
from evomerge.types import ItemScore, SplitName

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Items = Mapping[str, Mapping[str, ItemScore]]
"""Slice -> item -> score."""


def items_file(folder: Path, trial: int, split: SplitName, part: int = 0) -> Path:
    return folder / f"trial-{trial:05d}.{split}{f'.{part}' if part else ''}.parquet"


def item_files(folder: Path, trial: int, split: SplitName) -> list[Path]:
    """The files of a trial that are there, in the order in which they were written."""
    files: list[Path] = []
    while (file := items_file(folder, trial, split, len(files))).is_file():
        files.append(file)
    return files


@deferred()
def write_items(folder: Path, trial: int, split: SplitName, items: Mapping[str, Iterable[ItemScore]]) -> None:
    """Writes a trial's items in place of all that are there. A kill on the way leaves more of them, never fewer."""
    later = item_files(folder, trial, split)[1:]
    save_items(items_file(folder, trial, split), items)
    for file in reversed(later):
        file.unlink()


def append_items(folder: Path, trial: int, split: SplitName, items: Mapping[str, Iterable[ItemScore]]) -> None:
    """Adds a part to a trial's items."""
    save_items(items_file(folder, trial, split, len(item_files(folder, trial, split))), items)


@deferred()
def save_items(file: Path, items: Mapping[str, Iterable[ItemScore]]) -> None:
    """Writes one row an item: slice, item, score (natural direction), weight, cluster, raw (JSON); as lines of JSON
    where `file` ends in .jsonl, else as Parquet. The file is replaced whole."""
    temporary = file.with_name(f".{file.name}")
    try:
        if file.suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8") as stream:
                for row in _rows(items):
                    finite = row["score"] is not None and math.isfinite(row["score"])
                    stream.write(json.dumps({**row, "score": row["score"] if finite else None}, ensure_ascii=False))
                    stream.write("\n")
        else:
            from pyarrow import parquet

            parquet.write_table(_table(items), temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(items: Mapping[str, Iterable[ItemScore]]) -> list[dict[str, Any]]:
    return [
        {
            "slice": name,
            "item": item.item,
            "score": None if item.score is None or math.isnan(item.score) else float(item.score),
            "weight": float(item.weight),
            "cluster": item.cluster,
            "raw": json.dumps(item.raw, default=str),
        }
        for name, scores in items.items()
        for item in scores
    ]


def _table(items: Mapping[str, Iterable[ItemScore]]) -> pa.Table:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    types = {"slice": text, "item": text, "score": number, "weight": number, "cluster": text, "raw": text}
    return pa.Table.from_pylist(_rows(items), schema=pa.schema(list(types.items())))


def read_items(folder: Path, trial: int, split: SplitName) -> pd.DataFrame:
    """A trial's items as a table, one row an item. FileNotFoundError where none were kept."""
    import pandas as pd

    files = item_files(folder, trial, split) or [items_file(folder, trial, split)]
    table = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    return table.drop_duplicates(["slice", "item"], keep="last", ignore_index=True)


def load_items(folder: Path, trial: int, split: SplitName, raw: bool = True) -> dict[str, dict[str, ItemScore]]:
    """Slice -> item -> score, as far as they were kept; without `raw`, not what the metric returned for each."""
    from pyarrow import parquet

    loaded: dict[str, dict[str, ItemScore]] = {}
    for file in item_files(folder, trial, split):
        for row in parquet.read_table(file, partitioning=None).to_pylist():
            score = row["score"]
            known = None if score is None or score != score else float(score)
            metric = json.loads(row["raw"]) if raw else None
            item = ItemScore(row["item"], known, float(row["weight"]), metric, row.get("cluster"))
            loaded.setdefault(row["slice"], {})[row["item"]] = item
    return loaded


def recorded_items(folder: Path, trial: int, split: SplitName) -> dict[str, tuple[ItemScore, ...]]:
    """A trial's items by slice, without what the metric returned for them; empty where none were kept."""
    return {name: tuple(items.values()) for name, items in load_items(folder, trial, split, raw=False).items()}
