"""Shows whether a merge that was made again is the one that was published."""

from __future__ import annotations

from typing import Any

from evomerge.examine.reproduce import Reproduced
from evomerge.report.shown import Cell, Column, Row, Sheet

_WORDS = {True: "equal", False: "differs", None: "-"}
_STYLES = {True: "", False: "bold red", None: "dim"}


def reproduced_table(result: Reproduced) -> Sheet:
    """Builds a table of the files: beside the record, and as made again."""
    columns = [Column("published", numbers=False), Column("made again", numbers=False)]
    rows = [
        Row([name], [Cell(_WORDS[equal], style=_STYLES[equal]) for equal in (f.published, f.rebuilt)])
        for name, f in sorted(result.files.items())
    ]
    notes = ["-: no checkpoint stands beside the record, or a text for people, which is not made again"]
    return Sheet("Files, against their recorded hashes", ["file"], columns, rows, notes)


def reproduced_words(result: Reproduced) -> list[str]:
    """Says whether all is equal, and which versions differ."""
    made, recorded = result.digest
    same = "the weights are equal, bit for bit" if made == recorded else "the weights differ"
    lines = [f"{same}: digest {made}" + ("" if made == recorded else f", recorded {recorded}")]
    unequal = [name for name, file in result.files.items() if not file.equal]
    lines += [f"differs: {', '.join(sorted(unequal))}"] if unequal else []
    packages = [f"{name} {then} -> {now}" for name, (then, now) in result.versions.items()]
    lines += [f"other versions: {', '.join(packages)}"] if packages else []
    return [*lines, *([f"wrote {result.folder}"] if result.folder else [])]


def reproduced_data(result: Reproduced) -> dict[str, Any]:
    return {
        "equal": result.equal,
        "digest": {"made": result.digest[0], "recorded": result.digest[1]},
        "files": {name: {"published": f.published, "made": f.rebuilt} for name, f in sorted(result.files.items())},
        "versions": {name: {"recorded": a, "here": b} for name, (a, b) in result.versions.items()},
        "checkpoint": str(result.folder) if result.folder else None,
    }
