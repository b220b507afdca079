"""What a page consists of: sections of texts, tables, charts, code and items. All of it is text: the template escapes
it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Tone = Literal["", "good", "bad", "note"]
"""How a cell or a word is set off; its text says the same."""


@dataclass(frozen=True)
class Cell:
    """One cell. `below`: a smaller line, such as an interval."""

    text: str
    below: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        caption: what it shows.
        heads: of the columns.
        rows: the cells; a text is a cell.
        notes: lines below it.
        folded: whether it stands in a fold: the numbers of a chart.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    notes: Sequence[str] = ()
    folded: bool = False

    kind = "table"


@dataclass(frozen=True)
class Chart:
    """A chart with its numbers.

    Attributes:
        id: of its element.
        title: its caption.
        label: what it shows, for who does not see it.
        spec: "data" and "layout" of plotly; colours may be names of the page's own (`--ink`); or "pairs": the slices
            that a reader chooses two of (`page.js`).
        height: in pixels.
        table: the numbers.
        choices: of each menu: label and options.
    """

    id: str
    title: str
    label: str
    spec: Mapping[str, Any]
    height: int
    table: Table
    choices: Sequence[tuple[str, Sequence[str]]] = ()
    notes: Sequence[str] = ()

    kind = "chart"


@dataclass(frozen=True)
class Words:
    """Paragraphs, or (`listed`) the lines of a list."""

    lines: Sequence[str]
    listed: bool = False

    kind = "words"


@dataclass(frozen=True)
class Code:
    """Text to copy. `id`: of its element. `label`: what it is."""

    id: str
    label: str
    text: str

    kind = "code"


@dataclass(frozen=True)
class Items:
    """Items with their texts, each a fold: a heading; facts; the prompt and the choices."""

    entries: Sequence[Mapping[str, Any]]

    kind = "items"


@dataclass(frozen=True)
class Columns:
    """Blocks side by side, each with a heading of its own; one below the other where there is no room."""

    parts: Sequence[tuple[str, Sequence[Block]]]

    kind = "columns"


Block = Table | Chart | Words | Code | Items | Columns


@dataclass(frozen=True)
class Section:
    """A part of the page, with an anchor."""

    id: str
    title: str
    blocks: Sequence[Block] = field(default_factory=list)
