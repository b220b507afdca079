"""Per-item scores of every trial in Parquet, so that a re-weighting or a paired test needs no model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.interrupts import deferred
from evomerge.types import ItemScore, SplitName

if TYPE_CHECKING:
    import pandas as pd


def items_file(folder: Path, trial: int, split: SplitName) -> Path:
    return folder / f"trial-{trial:05d}.{split}.parquet"


def write_items(folder: Path, trial: int, split: SplitName, items: Mapping[str, Iterable[ItemScore]]) -> None:
    """A trial's items."""
    save_items(items_file(folder, trial, split), items)


@deferred()
def save_items(file: Path, items: Mapping[str, Iterable[ItemScore]]) -> None:
    """One row an item: slice, item, score (natural direction), weight, cluster, raw (JSON); as lines of JSON where
    `file` ends in .jsonl, else as Parquet. Replaced whole."""
    import pandas as pd

    rows = [
        (name, i.item, i.score, i.weight, i.cluster, json.dumps(i.raw, default=str))
        for name, scores in items.items()
        for i in scores
    ]
    table = pd.DataFrame(rows, columns=["slice", "item", "score", "weight", "cluster", "raw"])
    temporary = file.with_name(f".{file.name}")
    try:
        if file.suffix == ".jsonl":
            table.to_json(temporary, orient="records", lines=True, force_ascii=False)
        else:
            table.to_parquet(temporary, index=False)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def read_items(folder: Path, trial: int, split: SplitName) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(items_file(folder, trial, split))


def load_items(folder: Path, trial: int, split: SplitName, raw: bool = True) -> dict[str, dict[str, ItemScore]]:
    """Slice -> item -> score, of those that were kept; without `raw`, not what the metric returned for each."""
    if not items_file(folder, trial, split).is_file():
        return {}
    table = read_items(folder, trial, split)
    if "cluster" not in table:
        table["cluster"] = None
    found: dict[str, dict[str, ItemScore]] = {}
    columns = table[["slice", "item", "score", "weight", "raw", "cluster"]]
    for name, item, score, weight, told, cluster in columns.itertuples(index=False, name=None):
        known = None if score is None or score != score else float(score)
        shared = cluster if isinstance(cluster, str) else None  # pandas says NaN for None among strings
        made = ItemScore(item, known, float(weight), json.loads(told) if raw else None, shared)
        found.setdefault(name, {})[item] = made
    return found


def recorded_items(folder: Path, trial: int, split: SplitName) -> dict[str, tuple[ItemScore, ...]]:
    """A trial's items by slice, without what the metric returned for them; empty where none were kept."""
    return {name: tuple(items.values()) for name, items in load_items(folder, trial, split, raw=False).items()}
