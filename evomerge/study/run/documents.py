"""What people read of a run's items, in one Parquet file beside their scores: written once, for reports and
comparisons. Nothing is computed with it, and older runs have none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from evomerge.errors import InputError, Where
from evomerge.escape import shortened
from evomerge.safety.durable import write_whole
from evomerge.safety.read import read_bytes
from evomerge.types import Document

MOST = 20_000
"""Items of a run whose texts are kept: with 2,000 characters each 40 MB, and less on the disk."""

_COLUMNS = ("slice", "item", "split", "number", "prompt", "choices", "answer")


def documents_file(items: Path) -> Path:
    """The file in the folder of a run's items."""
    return items / "documents.parquet"


def write_documents(items: Path, documents: Mapping[str, Iterable[Document]]) -> None:
    """Writes one row an item: slice, item, split, number, prompt, choices (JSON), right answer."""
    rows = [
        {
            "slice": name,
            "item": document.item,
            "split": document.split,
            "number": document.number,
            "prompt": document.prompt,
            "choices": json.dumps(document.choices),
            "answer": document.answer,
        }
        for name, listed in documents.items()
        for document in listed
    ]
    write_whole(documents_file(items), partial(_write, rows))


def _write(rows: list[dict[str, Any]], stream: IO[bytes]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {name: pa.int64() if name == "number" else pa.string() for name in _COLUMNS}
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))
    parquet.write_table(table, stream, compression="zstd", write_page_checksum=True)


def read_documents(items: Path) -> dict[str, dict[str, Document]]:
    """Slice -> item -> document; empty where the run has none. InputError where the file is damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    file = documents_file(items)
    if not file.exists():
        return {}
    content = read_bytes(file)
    documents: dict[str, dict[str, Document]] = {}
    try:
        table = parquet.read_table(pa.BufferReader(content), page_checksum_verification=True)
        for row in table.select(_COLUMNS).to_pylist():
            choices = tuple(map(str, json.loads(row["choices"])))
            document = Document(row["item"], row["split"], row["number"], row["prompt"], choices, row["answer"])
            documents.setdefault(row["slice"], {})[document.item] = document
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError, pa.ArrowException) as error:
        problem = f"cannot be read ({shortened(error)})"
        raise InputError(problem, "remove it: `evomerge resume` writes it again", Where(file)) from None
    return documents
