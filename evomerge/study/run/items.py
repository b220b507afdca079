"""Per-item scores of every trial in Parquet, so that a re-weighting or a paired test needs no model.

A trial that is scored in parts has a file for each: ``trial-00007.search.parquet``, ``trial-00007.search.1.parquet``,
and so on. A later part's item stands for an earlier one's. Each file holds the digest of its rows, and checksums of its
pages, so that a changed one is found when it is read. Older files have neither.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from evomerge.errors import InputError, Where
from evomerge.escape import shortened
from evomerge.interrupts import deferred
from evomerge.safety.durable import write_whole
from evomerge.safety.read import read_bytes
from evomerge.types import ItemScore, SplitName

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

RESTORE = "restore the file, or `evomerge resume` the run, which scores the items again"

_DIGEST = b"evomerge.digest"
_FILE = re.compile(r"trial-(\d+)\.(search|holdout)(?:\.\d+)?\.parquet")
_COLUMNS = {"slice", "item", "score", "weight", "raw"}

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


def count_files(folder: Path) -> Counter[tuple[int, str]]:
    """How many files there are of each trial and split, also those behind a missing part."""
    matches = (_FILE.fullmatch(file.name) for file in folder.iterdir())
    return Counter((int(match[1]), match[2]) for match in matches if match)


@deferred()
def write_items(folder: Path, trial: int, split: SplitName, items: Mapping[str, Iterable[ItemScore]]) -> None:
    """Writes a trial's items in place of all that are there. A kill on the way leaves more of them, never fewer."""
    save_items(items_file(folder, trial, split), items)
    for file in reversed(item_files(folder, trial, split)[1:]):
        file.unlink()


def append_items(folder: Path, trial: int, split: SplitName, items: Mapping[str, Iterable[ItemScore]]) -> None:
    """Adds a part to a trial's items."""
    save_items(items_file(folder, trial, split, len(item_files(folder, trial, split))), items)


def save_items(file: Path, items: Mapping[str, Iterable[ItemScore]]) -> None:
    """Writes one row an item: slice, item, score (natural direction), weight, cluster, raw (JSON), answer,
    written; as lines of JSON where `file` ends in .jsonl, else as Parquet. The file is replaced whole."""
    rows = _rows(items)
    if file.suffix == ".jsonl":
        finite = ({**row, "score": row["score"] if math.isfinite(row["score"] or 0) else None} for row in rows)
        write_whole(file, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in finite))
    else:
        write_whole(file, partial(_write_parquet, rows))


def _write_parquet(rows: list[dict[str, Any]], stream: IO[bytes]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text, number = pa.string(), pa.float64()
    types = {"slice": text, "item": text, "score": number, "weight": number}
    types |= dict.fromkeys(("cluster", "raw", "answer", "written"), text)
    schema = pa.schema(list(types.items()), metadata={_DIGEST: _digest(rows)})
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), stream, write_page_checksum=True)


def _rows(items: Mapping[str, Iterable[ItemScore]]) -> list[dict[str, Any]]:
    return [
        {
            "slice": name,
            "item": item.item,
            "score": None if item.score is None or math.isnan(item.score) else float(item.score),
            "weight": float(item.weight),
            "cluster": item.cluster,
            "raw": _text(item.raw),
            "answer": item.answer,
            "written": item.written,
        }
        for name, scores in items.items()
        for item in scores
    ]


def _text(raw: Any) -> str:
    """As JSON. Most metrics return a number for each item, whose text is Python's own."""
    return repr(raw) if type(raw) is float and math.isfinite(raw) else json.dumps(raw, default=str)


def _digest(rows: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(row.values())).encode())
    return digest.hexdigest()


def _read(file: Path) -> tuple[pa.Table, list[dict[str, Any]]]:
    """A file's table, and its rows. InputError where it is not as it was written."""
    import pyarrow as pa
    from pyarrow import parquet

    content = read_bytes(file)
    try:
        table = parquet.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
        rows = table.to_pylist()
        digest = (table.schema.metadata or {}).get(_DIGEST)
        sound = set(table.column_names) >= _COLUMNS and (digest is None or digest.decode() == _digest(rows))
        problem = "" if sound else "is not as it was written"
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError, pa.ArrowException) as error:
        problem = f"cannot be read ({shortened(error)})"
    if problem:
        raise InputError(problem, RESTORE, Where(file))
    return table, rows


def read_items(folder: Path, trial: int, split: SplitName) -> pd.DataFrame:
    """A trial's items as a table, one row an item. FileNotFoundError where none were kept, InputError where a file is
    damaged."""
    import pandas as pd

    files = item_files(folder, trial, split)
    if not files:
        raise FileNotFoundError(items_file(folder, trial, split))
    table: pd.DataFrame = pd.concat([_read(file)[0].to_pandas() for file in files], ignore_index=True)
    return table.drop_duplicates(["slice", "item"], keep="last", ignore_index=True)


def load_items(
    folder: Path,
    trial: int,
    split: SplitName,
    raw: bool = True,
    enough: Callable[[Items], bool] | None = None,
) -> dict[str, dict[str, ItemScore]]:
    """Slice -> item -> score, as far as they were kept.

    Args:
        folder, trial, split: of the items.
        raw: whether to read what the metric returned for each.
        enough: whether no further part is to be read.

    Raises:
        InputError: a file is damaged.
    """
    loaded: dict[str, dict[str, ItemScore]] = {}
    for file in item_files(folder, trial, split):
        if enough is not None and enough(loaded):
            break
        try:
            items = [(row["slice"], _item(row, raw)) for row in _read(file)[1]]
        except (ValueError, TypeError) as error:
            raise InputError(f"cannot be read ({shortened(error)})", RESTORE, Where(file)) from None
        for name, item in items:
            loaded.setdefault(name, {})[item.item] = item
    return loaded


def _item(row: Mapping[str, Any], raw: bool) -> ItemScore:
    score = row["score"]
    known = None if score is None or score != score else float(score)
    return ItemScore(
        row["item"],
        known,
        float(row["weight"]),
        json.loads(row["raw"]) if raw else None,
        row.get("cluster"),
        row.get("answer"),
        row.get("written"),
    )


def remove_items(folder: Path, trial: int, split: SplitName) -> None:
    """Removes all that is there of a trial's items, also parts behind a missing one, and folders in their place."""
    for file in folder.glob(f"trial-{trial:05d}.{split}.*"):
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink()


def recorded_items(folder: Path, trial: int, split: SplitName) -> dict[str, tuple[ItemScore, ...]]:
    """A trial's items by slice, without what the metric returned for them; empty where none were kept."""
    return {name: tuple(items.values()) for name, items in load_items(folder, trial, split, raw=False).items()}
