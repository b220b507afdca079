"""Per-item scores of every trial in Parquet, so that a re-weighting or a paired test needs no model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.types import Scores, SplitName

if TYPE_CHECKING:
    import pandas as pd


def items_file(folder: Path, trial: int, split: SplitName) -> Path:
    return folder / f"trial-{trial:05d}.{split}.parquet"


def write_items(folder: Path, trial: int, split: SplitName, scores: Scores) -> None:
    """One row an item: slice, item, score (natural direction), weight, raw (JSON). Replaced whole."""
    import pandas as pd

    rows = [
        {"slice": name, "item": i.item, "score": i.score, "weight": i.weight, "raw": json.dumps(i.raw, default=str)}
        for name, piece in scores.items()
        for i in piece.items
    ]
    table = pd.DataFrame(rows, columns=["slice", "item", "score", "weight", "raw"])
    file = items_file(folder, trial, split)
    temporary = file.with_name(f".{file.name}")
    try:
        table.to_parquet(temporary, index=False)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def read_items(folder: Path, trial: int, split: SplitName) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(items_file(folder, trial, split))
