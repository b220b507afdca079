"""Shows texts and tables on a terminal or in a pipe. Everything that people see of a command goes through here.

Texts from outside are made printable, and are never read as markup. A table is laid out for the width that it gets:
what it says can be folded or turned, and is never cut. Numbers are never folded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from typing import IO, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from evomerge.escape import printable

_PIPE = 100
"""Columns of a pipe, at least; a wider table gets as many as it needs."""

_NAME, _HEADING = 12, 8
"""A column of names, or a heading, is not folded to fewer columns than that."""

_NUMBER = re.compile(r"[-+≥≤~✗]?\d[\d.,:%]*")
_BREAKS = " _-/,+@"


class PipeConsole(Console):
    """Raises BrokenPipeError where its reader has left. Rich's own would end the program with exit code 1, and drop
    what is still to come on stdout: the results."""

    def on_broken_pipe(self) -> None:
        raise  # what is being handled


def console(stream: IO[str]) -> Console:
    """A console that parses nothing in a text, and writes control sequences to a terminal only."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # a terminal that has no such letter shows its number
    terminal = stream.isatty()
    return PipeConsole(file=stream, force_terminal=terminal, markup=False, highlight=False, emoji=False)


def show(*things: Sheet | str) -> None:
    """Prints tables and lines on stdout."""
    out = console(sys.stdout)
    for thing in things:
        if isinstance(thing, str):
            out.print(Text(printable(thing)), soft_wrap=True)
            continue
        if not out.is_terminal:
            out.width = max(_PIPE, thing.widest)
        out.print(thing)


def plain(*things: Sheet | str) -> str:
    """Writes tables and lines as a file holds them: whole, without control sequences."""
    widest = max((thing.widest for thing in things if isinstance(thing, Sheet)), default=_PIPE)
    out = PipeConsole(file=StringIO(), width=max(_PIPE, widest), markup=False, highlight=False, emoji=False)
    for thing in things:
        out.print(Text(printable(thing)) if isinstance(thing, str) else thing, soft_wrap=isinstance(thing, str))
    written: str = out.file.getvalue()  # type: ignore[attr-defined]
    return written


def text(content: object, style: str = "") -> Text:
    """A text from outside, for rich."""
    return Text(printable(content), style=style)


@dataclass(frozen=True)
class Cell:
    """One place of a table.

    text: what stands there.
    more: what follows it where there is room: an interval, for example.
    style: rich's.
    """

    text: str
    more: str = ""
    style: str = ""

    def shown(self, whole: bool) -> str:
        return printable(f"{self.text}{self.more}" if whole else self.text)


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, what stands below that (a metric), and whether it holds numbers."""

    name: str
    below: str = ""
    numbers: bool = True

    @property
    def label(self) -> str:
        """Its heading on one line."""
        return printable(f"{self.name} {self.below}".strip())


@dataclass(frozen=True)
class Row:
    """A row: the names that say which (`heads`), its cells, and whether a line follows it."""

    heads: Sequence[str]
    cells: Sequence[Cell]
    style: str = ""
    ends: bool = False


class Sheet:
    """A table that is laid out for the width that it is shown in. The first that fits is taken:

    1. one line a row, with everything;
    2. the same without what cells hold as `more`;
    3. turned, so that a line is a column: one block for each first head, one column for each row of that block;
    4. the same without `more`;
    5. "column: value", a line each.
    """

    def __init__(
        self,
        title: str,
        heads: Sequence[str],
        columns: Sequence[Column],
        rows: Sequence[Row],
        legend: Sequence[str] = (),
        more: str = "",
    ) -> None:
        """Args:
        title: stands above; may be empty.
        heads: names of the columns that say which row it is.
        columns: the other ones.
        rows: in order.
        legend: lines that stand below.
        more: what cells hold as `more`: the legend says where it is.
        """
        self.title, self.heads, self.columns, self.rows, self.legend = title, heads, columns, rows, legend
        self.more = more

    @property
    def widest(self) -> int:
        """The columns that the whole table takes, title and legend included."""
        texts = (self.title, *self.legend)
        return max(_lines(self, whole=True).natural, *(cell_len(printable(content)) for content in texts))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, min(self.widest, options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if self.title:
            yield Text(_folded(printable(self.title), width), style="bold")
        layouts = ((layout(self, whole).drawn(width), whole) for layout in (_lines, _turned) for whole in (True, False))
        listed = Text(_folded("\n".join(self._listed()), width)), False
        drawn, whole = next(((table, whole) for table, whole in layouts if table is not None), listed)
        yield drawn
        where = f"in brackets: {self.more}" if whole else f"{self.more}: in a wider window, or with --json"
        for line in (*([where] if self.more else []), *self.legend):
            yield Text(_folded(printable(line), width), style="dim italic")

    def _listed(self) -> Iterator[str]:
        for row in self.rows:
            yield printable(", ".join(filter(None, row.heads)))
            for column, cell in zip(self.columns, row.cells, strict=True):
                yield f"  {column.label}: {cell.shown(whole=False)}"


@dataclass(frozen=True)
class _Strip:
    """One column as it is drawn: heading, cells, whether it stands to the right, and the fewest columns that it can be
    folded to."""

    heading: str
    cells: list[str]
    right: bool
    least: int

    @classmethod
    def of(cls, heading: str, cells: list[str], numbers: bool) -> _Strip:
        least = min(_HEADING, max(map(cell_len, heading.split("\n"))))
        for cell in cells:
            short = cell_len(cell) if numbers else min(_NAME, cell_len(cell))
            least = max(least, short, *(cell_len(found) for found in _NUMBER.findall(cell)))
        return cls(heading, cells, numbers, max(1, least))

    @property
    def natural(self) -> int:
        texts = (line for content in (self.heading, *self.cells) for line in content.split("\n"))
        return max(self.least, *map(cell_len, texts))


@dataclass(frozen=True)
class _Layout:
    """A table as it is drawn: its strips, the style of each place by line, and the lines that end a section."""

    strips: list[_Strip]
    styles: list[list[str]]
    ends: set[int]
    headed: bool

    @property
    def natural(self) -> int:
        return sum(strip.natural for strip in self.strips) + self._frame

    @property
    def _frame(self) -> int:
        """The columns that lines, and the spaces beside them, take."""
        return 3 * len(self.strips) + 1

    def drawn(self, width: int) -> Table | None:
        """The table; None where it does not fit."""
        widths = _widths(self.strips, width - self._frame)
        if widths is None:
            return None
        table = Table(header_style="bold", show_header=self.headed)
        for strip, room in zip(self.strips, widths, strict=True):
            justify: Literal["left", "right"] = "right" if strip.right else "left"
            table.add_column(_fixed(strip.heading, room), width=room, justify=justify)
        for at, styles in enumerate(self.styles):
            places = zip(self.strips, widths, styles, strict=True)
            cells = (_fixed(strip.cells[at], room, style) for strip, room, style in places)
            table.add_row(*cells, end_section=at in self.ends)
        return table


def _lines(sheet: Sheet, whole: bool) -> _Layout:
    """One line a row."""
    strips = [
        _Strip.of(printable(head), [printable(row.heads[at]) for row in sheet.rows], numbers=False)
        for at, head in enumerate(sheet.heads)
    ]
    for at, column in enumerate(sheet.columns):
        heading = "\n".join(map(printable, filter(None, (column.name, column.below))))
        strips.append(_Strip.of(heading, [row.cells[at].shown(whole) for row in sheet.rows], column.numbers))
    styles = [[row.style] * len(row.heads) + [cell.style or row.style for cell in row.cells] for row in sheet.rows]
    return _Layout(strips, styles, {at for at, row in enumerate(sheet.rows) if row.ends}, headed=True)


def _turned(sheet: Sheet, whole: bool) -> _Layout:
    """One line a column, in a block for each first head, with a strip for each row of that block."""
    blocks = [[row] for row in sheet.rows]
    if len(sheet.heads) > 1:
        blocks = [list(rows) for _, rows in groupby(sheet.rows, lambda row: row.heads[0])]
    across = max(map(len, blocks), default=1)
    labels = [column.label for column in sheet.columns]
    columns: list[list[str]] = [[] for _ in range(across + 1)]
    styles = []
    for block in blocks:
        padded = [*block, *[None] * (across - len(block))]
        columns[0] += [printable(block[0].heads[0]), *labels]
        for row, column in zip(padded, columns[1:], strict=True):
            shown = [""] * len(labels) if row is None else [cell.shown(whole) for cell in row.cells]
            column += ["" if row is None else printable(", ".join(row.heads[1:])), *shown]
        styles.append(["bold"] * (across + 1))
        styles += [["", *("" if row is None else row.cells[at].style for row in padded)] for at in range(len(labels))]
    numbers = all(column.numbers for column in sheet.columns)
    strips = [_Strip.of("", columns[0], numbers=False), *(_Strip.of("", cells, numbers) for cells in columns[1:])]
    ends = {at for at in range(len(styles)) if (at + 1) % (len(labels) + 1) == 0}
    return _Layout(strips, styles, ends, headed=False)


def _widths(strips: Sequence[_Strip], room: int) -> list[int] | None:
    """The width of each strip, the widest ones made narrower until all fit; None where they cannot."""
    if sum(strip.least for strip in strips) > room:
        return None
    widths = [strip.natural for strip in strips]
    while (excess := sum(widths) - room) > 0:
        able = [at for at, strip in enumerate(strips) if widths[at] > strip.least]
        at = max(able, key=lambda at: widths[at])
        second = max((widths[other] for other in able if other != at), default=0)
        widths[at] = min(widths[at] - 1, max(strips[at].least, second, widths[at] - excess))
    return widths


def _folded(content: str, width: int) -> str:
    """The text in lines of at most `width` columns, broken behind a space or a sign where one is near."""
    return "\n".join(part for line in content.split("\n") for part in _parts(line, max(1, width)))


def _parts(line: str, width: int) -> Iterator[str]:
    while cell_len(line) > width:
        most = _fitting(line, width)
        best = max((at + 1 for at in range(most // 2, most) if line[at] in _BREAKS), default=most)
        space = line.rfind(" ", 1, most + 1)
        best = space if space > 0 else best
        yield line[:best].rstrip(" ")
        line = line[best:].lstrip(" ")
    yield line


def _fitting(line: str, width: int) -> int:
    """How many of the first characters fit."""
    taken = 0
    for at, character in enumerate(line):
        taken += cell_len(character)
        if taken > width:
            return max(1, at)
    return len(line)


def _fixed(content: str, width: int, style: str = "") -> Text:
    """The text in lines that rich breaks no further."""
    return Text(_folded(content, width), style=style, no_wrap=True, overflow="crop")
