"""Texts from outside (names, paths, tensors, templates, errors of libraries) for terminal, log and Markdown.

A control character can move the cursor, retitle a terminal or hide a line, and markup can be taken for our own. So
every such text goes through one of these functions before it is shown.
"""

from __future__ import annotations

import html
import logging
import re
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that are escaped: control and format characters (also those that turn the direction of writing),
lone surrogates, unassigned ones, separators of lines and paragraphs."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|<>~&-])")
_PASSWORDS = (
    re.compile(r"(://[^\s:/@]*:)\S{1,2000}(?=@)"),  # user:password@host
    re.compile(r"([?&](?:password|passwd|pwd)=)[^\s&'\"]+", re.I),
)
"""In URLs: of a storage, of a proxy."""


def printable(text: object) -> str:
    """The text on one line, with what does not print written as Python writes it: ``\\x1b``, ``\\u202e``."""
    return "".join(c if c.isprintable() or not _hidden(c) else _code(c) for c in str(text))


def shortened(text: object, most: int = 200) -> str:
    """The printable text, cut to `most` characters."""
    shown = printable(str(text)[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def excerpt(text: object, most: int) -> str:
    """The text, in lines as it is, with its middle left out where it has more than `most` characters: what is asked
    stands at the end. Halves of characters, which no file takes, become question marks."""
    shown = str(text).encode("utf-8", "replace").decode("utf-8")
    if len(shown) <= most:
        return shown
    head = most // 3
    return f"{shown[:head]} [...] {shown[head + 7 - most :]}"


def quoted(value: object, most: int = 60) -> str:
    """A value as Python writes it, printable and cut to `most` characters: for messages that say what stands there."""
    return shortened(repr(value), most)


def masked(text: str) -> str:
    """The text with ``***`` for the passwords of URLs in it."""
    for password in _PASSWORDS:
        text = password.sub(r"\1***", text)
    return text


def markdown(text: object) -> str:
    """The printable text inside Markdown, in a line or in a cell of a table."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def plotly(text: object) -> str:
    """The printable text in a figure of plotly, which takes tags and entities of HTML for its own."""
    return html.escape(printable(text), quote=False)


def code(text: object) -> str:
    """The printable text as a code span of Markdown: between more backticks than it has in a row."""
    shown = printable(text)
    fence = "`" * (_longest_fence(shown) + 1)
    space = " " if shown[:1] in ("`", " ", "") or shown[-1:] in ("`", " ") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def code_block(text: str, language: str = "") -> str:
    """The lines of a text as a code block of Markdown, each one printable but for its tabs."""
    lines = ["\t".join(map(printable, line.split("\t"))) for line in text.rstrip().split("\n")]
    fence = "`" * max(3, _longest_fence(text) + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def _longest_fence(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


class LogFormatter(logging.Formatter):
    """Writes a record's first line as it is, printable, and indents the others: no text can look like another record,
    and a traceback stays readable. Passwords of URLs are masked."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n    ".join(map(printable, masked(super().format(record)).split("\n")))


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
