"""A terminal in memory: what programs write to it stands on its screen, and it knows the state in which it was left."""

from __future__ import annotations

import re

from rich.cells import cell_len

_PART = re.compile(r"\x1b\[(\?)?([\d;]*)([A-Za-z])|\x1b.|[\r\n]|[^\x1b\r\n]+")


class Terminal:
    """The screen after all that was written. It scrolls; what does not fit into a line goes on in the next one, and is
    counted.

    Attributes:
        wrapped: how many lines did not fit.
        cursor_shown, alternate, plain: whether the cursor is shown, the other screen is on, no attribute is set.
        unknown: control sequences that it does not know.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines = [""]
        self.row = self.column = self.wrapped = 0
        self.cursor_shown, self.alternate, self.plain = True, False, True
        self.unknown: list[str] = []

    @property
    def screen(self) -> list[str]:
        """The lines that can be seen."""
        return [line.rstrip() for line in self.lines[-self.height :]]

    def feed(self, written: str) -> None:
        for part in _PART.finditer(written):
            if part[3]:
                self._control(part[1] or "", part[2], part[3])
            elif part[0] == "\r":
                self.column = 0
            elif part[0] == "\n":
                self._down()
            elif part[0].startswith("\x1b"):
                self.unknown.append(part[0])
            else:
                self._write(part[0])

    def _write(self, content: str) -> None:
        for letter in content:
            if self.column + cell_len(letter) > self.width:
                self.wrapped += 1
                self._down()
                self.column = 0
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += cell_len(letter)

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _control(self, private: str, numbers: str, letter: str) -> None:
        if private and numbers == "25":
            self.cursor_shown = letter == "h"
        elif private and numbers == "1049":
            self.alternate = letter == "h"
        elif letter == "m":
            self.plain = numbers in ("", "0")
        elif letter == "A":  # no further than the top of the screen
            self.row = max(len(self.lines) - self.height, 0, self.row - int(numbers or 1))
        elif letter == "K" and numbers == "2":
            self.lines[self.row] = ""
        else:
            self.unknown.append(f"{private}{numbers}{letter}")
