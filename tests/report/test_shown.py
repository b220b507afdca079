"""Tables at every width: nothing is cut, numbers are whole, names can be read, and no name acts on the terminal."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from evomerge.escape import printable
from evomerge.numbers import telling
from evomerge.report.results import result_table
from evomerge.report.shown import Cell, Column, Row, Sheet, console, show
from tests.report.examples import SLICES, Made


def drawn(sheet: Sheet, width: int) -> str:
    out = Console(file=io.StringIO(), width=width)
    out.print(sheet)
    return out.file.getvalue()  # type: ignore[attr-defined]


def numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"(?<![\w.])\d+\.\d+", text))


def columns(text: str) -> list[str]:
    """What stands in each column of a drawn table, without spaces."""
    rows = [re.split("[│┃]", line)[1:-1] for line in text.splitlines() if line[:1] in "│┃"]
    return ["".join(parts).replace(" ", "") for parts in zip(*rows, strict=True)]


def texts(sheet: Sheet) -> Iterator[str]:
    """Every name in a table."""
    for row in sheet.rows:
        yield from row.heads
        yield from (cell.text for cell, column in zip(row.cells, sheet.columns, strict=True) if not column.numbers)
    yield from (column.name for column in sheet.columns)
    yield from (column.below for column in sheet.columns)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_nothing_is_cut_at_any_width(count: int, width: int) -> None:
    for name, sheet in Made(SLICES[:count], front=count == 3).sheets.items():
        text = drawn(sheet, width)
        assert max(map(cell_len, text.splitlines())) <= width, name
        assert "…" not in text
        found = numbers(text)
        for row in sheet.rows:
            for cell in row.cells:
                assert not numbers(cell.text) - found, (name, cell)
        parts = columns(text)
        for content in texts(sheet):
            assert any(printable(content).replace(" ", "") in part for part in parts), (name, content)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_each_score_stands_in_the_line_of_its_split(width: int) -> None:
    """Of the table with both splits: in a line that begins with the split, or below its name."""
    search, holdout = Made().both
    made = Made()
    text = drawn(result_table(made.result), width)
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.splitlines() if line[:1] in "│┃"]
    turned = any(row[1:] == ["search", "holdout"] for row in rows)
    for split, board in (("search", search), ("holdout", holdout)):
        for trial in holdout.trials:
            known = next(t for t in board.trials if t.number == trial.number)
            value = f"{known.scores['refunds']:.3f}"
            [place] = [row for row in rows if any(re.match(rf"(✗ )?{value}\b", cell) for cell in row)]
            at = next(i for i, cell in enumerate(place) if re.match(rf"(✗ )?{value}\b", cell))
            assert (at == ["search", "holdout"].index(split) + 1) if turned else split in place


def test_a_table_that_does_not_even_fit_turned_is_a_list() -> None:
    sheet = result_table(Made().result)
    text = drawn(sheet, 24)
    assert max(map(cell_len, text.splitlines())) <= 24
    assert "│" not in text
    found = numbers(text)
    assert all(not numbers(cell.text) - found for row in sheet.rows for cell in row.cells)


def test_a_pipe_gets_the_whole_table(capsys: pytest.CaptureFixture[str]) -> None:
    sheet = result_table(Made(SLICES).result)
    show(sheet)
    text = capsys.readouterr().out
    found = numbers(text)
    assert all(not numbers(cell.text + cell.more) - found for row in sheet.rows for cell in row.cells)
    assert len([line for line in text.splitlines() if line[:1] == "│"]) == len(sheet.rows)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_any_text_fits_any_width(text: str, width: int) -> None:
    sheet = Sheet(
        text, [text], [Column(text, text), Column("n")], [Row([text], [Cell(text, text), Cell("0.5")])], [text]
    )
    out = drawn(sheet, width)
    wide = max(map(cell_len, printable(text)), default=1) > 1  # two columns each: one column is too narrow for any
    assert max(map(cell_len, out.splitlines())) <= max(width, 2 if wide else 1)


HOSTILE = [
    "[/]", "[red]x", "[link=file:///etc/passwd]x", "model.\x1b[31mred\x1b]0;title\x07", "a\nb", "a\r\tb", ":boom:",
    "\u202eabc", "\x9b31m", "a\u2028b", "\ud800", "{task.percentage}", "%s %d", "$x$", "\\", "\u200b", "",
]  # fmt: skip


def check(name: str, folder: Path) -> None:
    made = Made((f"{name}1", f"{name}2", f"{name}3"), (f"{name}s", name), labels=(name,), metric=name)
    made.model, made.folder = f"models/{name}".replace("\0", ""), folder
    for key, sheet in made.sheets.items():
        for width in (60, 10_000):
            text = drawn(sheet, width)
            assert all(c.isprintable() or c in "\n" or not _acts(c) for c in text), key
        assert all(printable(content) in text for content in texts(sheet)), key
    out = io.StringIO()
    lines = console(out)
    for line in made.words:
        lines.print(printable(line))
    assert not any(map(_acts, out.getvalue().replace("\n", "")))


def _acts(character: str) -> bool:
    return printable(character) != character


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@given(st.text(max_size=30))
@settings(max_examples=10, deadline=None)
def test_any_name_is_text(name: str) -> None:
    check(name, Path("runs/x"))


def test_only_terminals_get_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment asks for."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    stream = io.StringIO()
    console(stream).print(result_table(Made().result))
    assert "\x1b" not in stream.getvalue()


def test_a_letter_that_the_terminal_lacks_ends_nothing() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console(stream).print(result_table(Made().result))


@pytest.mark.parametrize(
    ("floor", "scores", "sign", "decimals"),
    [
        (0.9, [(0.8996, False)], 1, 4),
        (0.9, [(0.91, True), (0.8, False)], 1, 3),
        (0.1451, [(0.1449, False)], 1, 4),
        (2.5, [(2.50004, False), (2.4, True)], -1, 5),
        (None, [(0.5, True)], 1, 3),
        (0.6, [(0.7 - 0.1, True)], 1, 3),
        (float("-inf"), [(0.5, True)], 1, 3),
    ],
)
def test_rounding_hides_no_missed_floor(
    floor: float | None, scores: list[tuple[float, bool]], sign: int, decimals: int
) -> None:
    assert telling(floor, scores, sign, 3) == decimals
